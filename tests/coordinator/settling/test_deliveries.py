"""A client that got less than the whole, and no receipt, signs for what it got."""

import signal
from dataclasses import replace

import pytest
import trio
from sqlalchemy import select
from trio.testing import MockClock

from coordinator.buyer.client import MarketClient
from coordinator.buyer.errors import JobFailed
from coordinator.cli.market_session import until_interrupted
from coordinator.db.leases import StoredLease, find_lease
from coordinator.db.schema import open_holds
from coordinator.leasing.clients import FIRST_STEP_NANO
from coordinator.leasing.registry import LeaseRegistry
from coordinator.leasing.restoring import restore_leases
from coordinator.settling.payments import Payments
from coordinator.settling.receipt_service import ReceiptService
from protocol.countersigning import Delivery
from protocol.endings import Finish, ReceiptState
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import LeaseId, sha256_digest
from protocol.keys import SigningKey
from protocol.limits import RECEIPT_GRACE_MS
from protocol.messages import Lease, Receipt
from protocol.pricing import Units, cost_nano
from protocol.receipts import charge_nano
from tests.coordinator.in_process.test_market import Shop
from tests.coordinator.lease_requests import signed_request
from tests.coordinator.small_market import (
    FEE_BPS,
    INPUT_UNITS,
    OPENING_CREDIT_NANO,
    PRICE,
    Script,
    ScriptedNode,
    SmallMarket,
    open_small_market,
)
from tests.protocol.makers import make_chain

# What VANISH_MIDWAY sends before it goes.
GOT = Units(INPUT_UNITS.input_tokens, output_tokens=2)
STRANGER_KEY = SigningKey(bytes([7]) * 32)


def spent(market: SmallMarket) -> int:
    return OPENING_CREDIT_NANO - market.account(market.buyer.peer_id).posted_nano


async def buy_cut(market: SmallMarket, client: MarketClient) -> Signed[Lease]:
    """An answer whose node vanishes midway; the client's word is handed in."""
    async with client.buy(market.spec(), market.buyer) as stream:
        lease = stream.granted.lease
        with pytest.raises(JobFailed):
            [chunk async for chunk in stream]
    await client.wait_settled()
    return lease


def bill_everything(node: ScriptedNode, lease: Signed[Lease]) -> Signed[Receipt]:
    units = lease.message.units_max
    plain = node.sign_unopened(lease, (), Finish.STOP).message
    return seal(
        node.key, replace(plain, units=units, amount_nano=charge_nano(PRICE, units, Finish.STOP))
    )


def stored_lease(market: SmallMarket, lease_id: LeaseId) -> StoredLease:
    with market.database.transaction() as conn:
        stored = find_lease(conn, lease_id)
    assert stored is not None
    return stored


def deliver(
    lease: Signed[Lease], key: SigningKey, units: Units = GOT, code: Code = Code.NODE_LOST
) -> Signed[Delivery]:
    return seal(
        key,
        Delivery(
            lease_id=lease.message.lease_id,
            lease_digest=lease.digest,
            client=key.peer_id,
            units=units,
            output_digest=sha256_digest(b""),
            code=code,
            issued_at_ms=lease.message.issued_at_ms,
        ),
    )


@pytest.mark.parametrize("is_gateway", [True, False])
async def test_a_cut_answer_is_paid_by_what_its_client_signed(
    autojump_clock: MockClock, is_gateway: bool
) -> None:
    """The gateway in the coordinator's process is no special case."""
    async with open_small_market(Script.VANISH_MIDWAY) as market:
        lease = await buy_cut(market, market.coordinator.client if is_gateway else market.client)
        raw = stored_lease(market, lease.message.lease_id).delivery
        assert raw is not None
        word = open_envelope(raw, Delivery, signer=market.buyer.peer_id).message
        assert (word.units, word.code) == (GOT, Code.NODE_LOST)
        node = market.nodes[0]
        reply = await node.hand_in(bill_everything(node, lease))
        assert reply.state == ReceiptState.DISPUTED
        assert spent(market) == reply.amount_nano == charge_nano(PRICE, GOT, Finish.STOP)
        market.assert_books_are_closed()


async def test_a_receipt_that_waits_for_its_client_is_paid_when_the_client_signs(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        lease = await lease_one(market)
        node = market.nodes[0]
        receipt = bill_everything(node, lease)
        assert (await node.hand_in(receipt)).state == ReceiptState.PENDING
        await market.leaser.declare(deliver(lease, market.buyer))
        assert spent(market) == charge_nano(PRICE, GOT, Finish.STOP)
        assert (await node.hand_in(receipt)).state == ReceiptState.DISPUTED
        market.assert_books_are_closed()


async def test_the_word_of_a_client_on_a_cut_answer_survives_a_restart(
    autojump_clock: MockClock,
) -> None:
    """The client pays what it got, and the operator nothing: it was not the one who cut it."""
    async with open_small_market(Script.VANISH_MIDWAY) as market:
        shop = Shop(market)
        with pytest.raises(JobFailed):
            await shop.buy(await shop.caller())
        await shop.settled()
        old = market.coordinator
        (lost,) = old.leases
        old.leases.end(lost)
        leases = LeaseRegistry(old.market)
        await restore_leases(market.database, leases, now_ms=market.clock.now_ms())
        payments = Payments(market.database, old.writer, clock=market.clock, fee_bps=FEE_BPS)
        service = ReceiptService(market.database, leases, payments, clock=market.clock)
        reply = await service.accept(bill_everything(market.nodes[0], lost.lease), None)
        assert reply.state == ReceiptState.DISPUTED
        assert shop.spent_nano() == charge_nano(PRICE, GOT, Finish.STOP)
        market.assert_books_are_closed()


async def test_only_the_first_word_of_the_leases_own_client_counts(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        lease = await lease_one(market)
        service = market.coordinator.lease_service
        refusals = [
            (deliver(lease, STRANGER_KEY), Code.WRONG_SIGNER),
            (deliver(lease, market.buyer, Units(1_000, 1_000)), Code.RECEIPT_MISMATCH),
        ]
        for delivery, code in refusals:
            with pytest.raises(RemoteProtocolError) as caught:
                await service.declare(delivery)
            assert caught.value.code is code
        first = deliver(lease, market.buyer)
        for _ in range(2):
            await service.declare(first)
        with pytest.raises(RemoteProtocolError) as caught:
            await service.declare(deliver(lease, market.buyer, Units()))
        assert caught.value.code is Code.ALREADY_EXISTS
        await trio.sleep(30 + RECEIPT_GRACE_MS / 1_000 + 5)
        market.assert_books_are_closed()
        await service.declare(first)
        with pytest.raises(RemoteProtocolError) as caught:
            await service.declare(deliver(lease, market.buyer, Units()))
        assert caught.value.code is Code.EXPIRED


async def test_a_word_on_no_lease_is_refused(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        with pytest.raises(RemoteProtocolError) as caught:
            await market.leaser.declare(deliver(make_chain().lease, market.buyer))
        assert caught.value.code is Code.NOT_FOUND


@pytest.mark.parametrize("paid_nano", [0, FIRST_STEP_NANO])
async def test_a_node_is_only_blamed_by_clients_that_have_paid_for_something(
    autojump_clock: MockClock, paid_nano: int
) -> None:
    """What a stranger says of a node costs it nothing."""
    async with open_small_market(Script.VANISH_MIDWAY) as market:
        clients = market.coordinator.leases.clients
        clients.keep(market.buyer.peer_id).note_settled(paid_nano, is_signed=True)
        await buy_cut(market, market.client)
        standing = market.coordinator.market.reputation.standing(
            market.nodes[0].key.peer_id, now_ms=market.clock.now_ms()
        )
        assert standing is not None
        assert standing.failures == (1 if paid_nano else 0)


async def test_a_key_has_the_rest_of_its_budget_again_once_its_client_has_signed(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.VANISH_MIDWAY) as market:
        shop = Shop(market, budget_nano=cost_nano(PRICE, market.spec().units_max))
        with pytest.raises(JobFailed) as cut:
            await shop.buy(await shop.caller())
        assert cut.value.delivered
        await shop.settled()
        with market.database.transaction() as conn:
            ((_, counted_nano),) = conn.execute(
                select(open_holds.c.transfer_id, open_holds.c.counted_nano)
            )
        assert counted_nano == charge_nano(PRICE, GOT, Finish.CANCELLED)


async def test_a_client_that_leaves_early_signs_although_its_node_is_gone(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.STALL_MIDWAY) as market:
        async with market.client.buy(market.spec(), market.buyer) as stream:
            await stream.__anext__()
            lease = stream.granted.lease
            market.network.kill(lease.message.node)
        await market.client.wait_settled()
        assert stored_lease(market, lease.message.lease_id).delivery is not None


async def test_an_interrupted_command_signs_for_what_it_got(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.STALL_MIDWAY) as market:
        with pytest.raises(KeyboardInterrupt):
            async with until_interrupted():
                await read_and_interrupt(market)
        await market.client.wait_settled()
        assert spent(market) > 0, "node and client agree on it: nothing has to wait"
        market.assert_books_are_closed()


async def read_and_interrupt(market: SmallMarket) -> None:
    async with market.client.buy(market.spec(), market.buyer) as stream:
        await stream.__anext__()
        await trio.sleep(1)
        signal.raise_signal(signal.SIGINT)
        await trio.sleep_forever()


async def lease_one(market: SmallMarket) -> Signed[Lease]:
    """A lease whose job is never opened."""
    granted = await market.coordinator.lease_service.lease(signed_request(market, market.buyer))
    return granted.lease


async def test_a_client_elsewhere_that_got_nothing_holds_its_money_until_its_node_has_spoken(
    autojump_clock: MockClock,
) -> None:
    """It may have signed for more while it streamed."""
    async with open_small_market(Script.ANSWER) as market:
        lease = (await market.leaser.lease(signed_request(market, market.buyer))).lease
        await market.leaser.declare(deliver(lease, market.buyer, Units()))
        assert market.coordinator.leases.get(lease.message.lease_id) is not None
        assert market.account(market.buyer.peer_id).held_nano == lease.message.ceiling_nano
