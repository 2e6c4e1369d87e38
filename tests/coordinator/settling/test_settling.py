"""Receipts become payments: who is paid what, when, and what happens to a second word."""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from coordinator.bounds import SWEEP_EVERY_S
from coordinator.buyer.errors import JobFailed
from coordinator.db.bulk import Record
from coordinator.db.jobs import find_jobs
from coordinator.db.leases import find_lease
from coordinator.db.receipts import find_receipt
from coordinator.db.writer import LedgerWriter
from coordinator.leasing.open_lease import ACCEPTANCE_WITHIN_MS
from coordinator.leasing.registry import LeaseRegistry
from coordinator.leasing.restoring import restore_leases
from coordinator.ledger.machine import Chain
from coordinator.ledger.transfers import Result
from coordinator.settling.payments import Payments
from coordinator.settling.receipt_service import ReceiptService
from protocol.endings import Finish, LeaseState, ReceiptState
from protocol.envelope import Signed, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.job_state import JobState
from protocol.limits import RECEIPT_GRACE_MS
from protocol.messages import Acceptance, Receipt
from protocol.payload import Chunk
from protocol.pricing import Units
from protocol.receipts import charge_nano
from tests.coordinator.small_market import (
    FEE_BPS,
    INPUT_UNITS,
    OPENING_CREDIT_NANO,
    Script,
    SmallMarket,
    open_small_market,
)
from tests.protocol.makers import make_chain

RECEIPT = make_chain().receipt.message


async def lose_client(market: SmallMarket) -> Signed[Receipt]:
    """A job is answered, but the buyer vanishes before it countersigns."""
    async with market.client.buy(market.spec(), market.buyer):
        market.network.kill(market.buyer.peer_id)
        await trio.sleep(1)
    return market.nodes[0].receipts[-1]


def spent(market: SmallMarket) -> int:
    return OPENING_CREDIT_NANO - market.account(market.buyer.peer_id).posted_nano


async def test_a_node_whose_client_vanished_is_paid_after_the_wait(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        receipt = await lose_client(market)
        reply = await market.nodes[0].hand_in(receipt)
        assert reply.state == ReceiptState.PENDING
        assert spent(market) == 0
        assert market.account(market.buyer.peer_id).held_nano > 0
        (opened,) = market.coordinator.leases
        left_ms = opened.lease.message.deadline_at_ms - market.clock.now_ms()
        await trio.sleep(left_ms / 1_000)
        assert spent(market) == 0, "its client may still say what it got"
        await trio.sleep(ACCEPTANCE_WITHIN_MS / 1_000 + 5)
        assert spent(market) == receipt.message.amount_nano
        market.assert_books_are_closed()


async def test_a_node_that_breaks_off_cannot_bill_more_than_the_gateway_received(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.VANISH_MIDWAY) as market:
        gateway, node = market.coordinator.client, market.nodes[0]
        async with gateway.buy(market.spec(), market.buyer) as stream:
            lease = stream.granted.lease
            with pytest.raises(JobFailed):
                [chunk async for chunk in stream]
        maximum = lease.message.units_max
        claimed = replace(
            node.sign_unopened(lease, (), Finish.STOP).message,
            units=maximum,
            amount_nano=charge_nano(lease.message.price, maximum, Finish.STOP),
        )
        reply = await node.hand_in(seal(node.key, claimed))
        assert reply.state == ReceiptState.DISPUTED
        received = Units(INPUT_UNITS.input_tokens, output_tokens=2)
        assert spent(market) == charge_nano(lease.message.price, received, Finish.STOP)
        market.assert_books_are_closed()


async def test_a_receipt_that_both_parties_hand_in_at_once_is_posted_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        receipt = await lose_client(market)
        billed = receipt.message
        acceptance = Acceptance(
            receipt_digest=receipt.digest,
            lease_id=billed.lease_id,
            client=billed.client,
            units=billed.units,
            output_digest=billed.output_digest,
            agrees=True,
            issued_at_ms=market.clock.now_ms(),
        )
        posted = 0
        submit = LedgerWriter.submit

        async def count(
            writer: LedgerWriter, chain: Chain, records: tuple[Record, ...] = ()
        ) -> Result:
            nonlocal posted
            posted += 1
            return await submit(writer, chain, records)

        monkeypatch.setattr(LedgerWriter, "submit", count)
        accept, signed = market.coordinator.receipts.accept, seal(market.buyer, acceptance)
        replies = []

        async def hand_in(word: Signed[Acceptance] | None) -> None:
            replies.append(await accept(receipt, word))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(hand_in, signed)
            nursery.start_soon(hand_in, signed)
            nursery.start_soon(hand_in, signed)
        assert [reply.state for reply in replies] == [ReceiptState.SETTLED] * 3
        assert posted == 1
        assert spent(market) == billed.amount_nano
        market.assert_books_are_closed()


async def test_handing_in_again_changes_nothing(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        await market.buy()
        await market.client.wait_settled()
        before = spent(market)
        (receipt,) = market.nodes[0].receipts
        for _ in range(3):
            reply = await market.nodes[0].hand_in(receipt)
            assert reply.state == ReceiptState.SETTLED
            assert reply.amount_nano == before
        assert spent(market) == before
        market.assert_books_are_closed()


async def test_a_second_receipt_for_the_same_lease_is_refused(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        await market.buy()
        await market.client.wait_settled()
        node = market.nodes[0]
        other = seal(node.key, replace(node.receipts[0].message, issued_at_ms=1))
        with pytest.raises(RemoteProtocolError) as caught:
            await node.hand_in(other)
        assert caught.value.code is Code.RECEIPT_MISMATCH
        market.assert_books_are_closed()


async def test_a_receipt_after_its_hold_has_expired_is_refused(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        receipt = await lose_client(market)
        await trio.sleep(200)
        market.assert_books_are_closed()
        assert spent(market) == 0
        with pytest.raises(RemoteProtocolError) as caught:
            await market.nodes[0].hand_in(receipt)
        assert caught.value.code is Code.EXPIRED
        assert spent(market) == 0


async def test_a_receipt_that_comes_before_the_sweep_but_after_its_time_is_refused(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        # A sweep looks every two seconds: between two looks the lease is open although it is over.
        await trio.sleep(SWEEP_EVERY_S / 2)
        receipt = await lose_client(market)
        (opened,) = market.coordinator.leases
        await trio.sleep((opened.receipts_until_ms - market.clock.now_ms()) / 1_000 + 0.01)
        assert len(market.coordinator.leases) == 1
        with pytest.raises(RemoteProtocolError) as caught:
            await market.nodes[0].hand_in(receipt)
        assert caught.value.code is Code.EXPIRED
        await trio.sleep(5)
        assert spent(market) == 0
        market.assert_books_are_closed()


async def test_a_receipt_for_no_lease_is_refused(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        forged = seal(node.key, replace(RECEIPT, node=node.key.peer_id))
        with pytest.raises(RemoteProtocolError) as caught:
            await node.hand_in(forged)
        assert caught.value.code is Code.NOT_FOUND


async def test_a_receipt_of_another_node_is_refused(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.HANG, Script.ANSWER) as market:
        thief = market.nodes[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_buy_until_cancelled, market)
            await trio.sleep(1)
            (opened,) = market.coordinator.leases
            if opened.lease.message.node == thief.key.peer_id:
                nursery.cancel_scope.cancel()
                return
            stolen = thief.sign_unopened(opened.lease, (), Finish.STOP)
            with pytest.raises(RemoteProtocolError) as caught:
                await thief.hand_in(stolen)
            assert caught.value.code is Code.WRONG_SIGNER
            nursery.cancel_scope.cancel()


async def _buy_until_cancelled(market: SmallMarket) -> None:
    await market.buy()


async def test_a_receipt_that_comes_late_is_paid_before_its_hold_runs_out(
    autojump_clock: MockClock,
) -> None:
    """Nobody works for nothing because its client let the lease lie, and then fell silent."""
    async with open_small_market(Script.ANSWER) as market:
        receipt = await lose_client(market)
        (opened,) = market.coordinator.leases
        left_ms = opened.hold_expires_at_ms - market.clock.now_ms()
        await trio.sleep((left_ms - ACCEPTANCE_WITHIN_MS) / 1_000)
        reply = await market.nodes[0].hand_in(receipt)
        assert (reply.state, spent(market)) == (ReceiptState.SETTLED, receipt.message.amount_nano)
        # The node is told what it gets of it, whenever it asks.
        assert reply.node_nano == market.account(market.nodes[0].key.peer_id).posted_nano
        assert reply.node_nano < reply.amount_nano
        assert await market.nodes[0].hand_in(receipt) == reply
        market.assert_books_are_closed()


async def test_an_acknowledged_receipt_is_paid_although_its_hold_ran_out(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        receipt = await lose_client(market)
        assert (await market.nodes[0].hand_in(receipt)).state == ReceiptState.PENDING
        pass_expiry(market)
        await trio.sleep(5)
        reply = await market.nodes[0].hand_in(receipt)
        assert (reply.state, spent(market)) == (ReceiptState.SETTLED, receipt.message.amount_nano)
        market.assert_books_are_closed()


async def test_a_hold_that_times_out_on_the_way_to_the_books_is_paid_all_the_same(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        receipt = await lose_client(market)
        (opened,) = market.coordinator.leases
        market.clock.ahead_ms += opened.hold_expires_at_ms - market.clock.now_ms() - 1
        submit = market.coordinator.writer.submit

        async def dawdle(chain: Chain, records: tuple[Record, ...] = ()) -> Result:
            market.clock.ahead_ms += 10
            return await submit(chain, records)

        monkeypatch.setattr(market.coordinator.writer, "submit", dawdle)
        reply = await market.nodes[0].hand_in(receipt)
        assert (reply.state, spent(market)) == (ReceiptState.SETTLED, receipt.message.amount_nano)
        market.assert_books_are_closed()


async def test_a_pending_receipt_whose_hold_another_program_gave_back_is_refused_for_good(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        receipt = await lose_client(market)
        await market.nodes[0].hand_in(receipt)
        pass_expiry(market)
        await LedgerWriter.expire_holds(market.coordinator.writer)
        with pytest.raises(RemoteProtocolError) as caught:
            await market.nodes[0].hand_in(receipt)
        assert (caught.value.code, spent(market)) == (Code.EXPIRED, 0)


async def test_a_hold_of_which_this_process_knows_nothing_ends_its_lease_too(
    autojump_clock: MockClock,
) -> None:
    """Another process granted it, or it was lost: the lease's row stayed open, the audit red."""
    async with open_small_market(Script.ANSWER) as market:
        await lose_client(market)
        (opened,) = market.coordinator.leases
        pass_expiry(market)
        market.coordinator.leases.end(opened)
        await trio.sleep(5)
        with market.database.transaction() as conn:
            stored = find_lease(conn, opened.lease.message.lease_id)
            (job,) = find_jobs(conn, opened.lease.message.job_id)
        assert stored is not None
        assert (stored.state, job.state) == (LeaseState.EXPIRED, JobState.EXPIRED)
        market.assert_books_are_closed()


def pass_expiry(market: SmallMarket) -> None:
    """As if the coordinator had been away until the hold was over."""
    (opened,) = market.coordinator.leases
    market.clock.ahead_ms += opened.hold_expires_at_ms - market.clock.now_ms()


async def restart_after_expiry(market: SmallMarket) -> ReceiptService:
    """A coordinator that was killed before the hold's timeout, and started after it."""
    old = market.coordinator
    pass_expiry(market)
    # The old one is dead: what it held in memory must not expire the hold first.
    for opened in list(old.leases):
        old.leases.end(opened)
    leases = LeaseRegistry(old.market)
    await restore_leases(market.database, leases, now_ms=market.clock.now_ms())
    payments = Payments(market.database, old.writer, clock=market.clock, fee_bps=FEE_BPS)
    return ReceiptService(market.database, leases, payments, clock=market.clock)


async def test_after_an_outage_receipts_are_taken_for_as_long_as_after_a_deadline(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        receipt = await lose_client(market)
        service = await restart_after_expiry(market)
        assert await service.expire() == 0
        assert (await service.accept(receipt, None)).state == ReceiptState.PENDING
        market.clock.ahead_ms += ACCEPTANCE_WITHIN_MS
        assert await service.sweep() == 1
        assert spent(market) == receipt.message.amount_nano
        market.assert_books_are_closed()


async def test_after_an_outage_a_hold_without_a_receipt_is_given_back_a_little_later(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        receipt = await lose_client(market)
        service = await restart_after_expiry(market)
        market.clock.ahead_ms += RECEIPT_GRACE_MS
        with pytest.raises(RemoteProtocolError) as caught:
            await service.accept(receipt, None)
        assert caught.value.code is Code.EXPIRED
        assert await service.expire() == 1
        market.assert_books_are_closed()


async def test_after_an_outage_a_receipt_that_had_been_acknowledged_is_paid(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        receipt = await lose_client(market)
        await market.nodes[0].hand_in(receipt)
        service = await restart_after_expiry(market)
        market.clock.ahead_ms += 10 * RECEIPT_GRACE_MS
        assert await service.expire() == 0, "what was acknowledged is kept, however late it is"
        assert await service.sweep() == 1
        assert spent(market) == receipt.message.amount_nano
        market.assert_books_are_closed()


async def test_the_receipt_that_was_paid_is_the_one_that_is_kept(autojump_clock: MockClock) -> None:
    """A node that signs one thing for the coordinator and another for its client."""
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        async with market.client.buy(market.spec(), market.buyer) as stream:
            lease = stream.granted.lease
            more = node.sign_unopened(lease, (Chunk((1,), "x"),) * 8, Finish.STOP)
            assert (await node.hand_in(more)).state == ReceiptState.PENDING
            async for _ in stream:
                pass
        await market.client.wait_settled()
        with market.database.transaction() as conn:
            stored = find_receipt(conn, lease.message.lease_id)
        assert stored is not None
        assert stored.receipt == node.receipts[-1].raw
        assert stored.units == node.receipts[-1].message.units
        market.assert_books_are_closed()
