"""Nodes that bill and stall, and answers that a restart of the coordinator has cut."""

import pytest
import trio
from trio.testing import MockClock

from coordinator.buyer.errors import JobFailed
from coordinator.db.accounts import find_account
from coordinator.leasing.open_lease import Opening, OpenLease
from coordinator.leasing.registry import LeaseRegistry
from coordinator.ledger.accounts import SystemAccount
from coordinator.settling.payments import Payments
from coordinator.settling.receipt_service import ReceiptService
from protocol.endings import Finish, ReceiptState
from protocol.limits import RECEIPT_GRACE_MS, WINDOW_TOKENS_MIN
from protocol.pricing import Units, cost_nano
from tests.coordinator.lease_requests import signed_request
from tests.coordinator.small_market import (
    FEE_BPS,
    INPUT_UNITS,
    OPENING_CREDIT_NANO,
    PRICE,
    Script,
    SmallMarket,
    open_small_market,
)


def spent(market: SmallMarket) -> int:
    return OPENING_CREDIT_NANO - market.account(market.buyer.peer_id).posted_nano


def successes(market: SmallMarket) -> int:
    standing = market.coordinator.market.reputation.standing(
        market.nodes[0].key.peer_id, now_ms=market.clock.now_ms()
    )
    return standing.successes if standing is not None else 0


@pytest.mark.parametrize("is_gateway", [True, False])
async def test_a_node_that_bills_everything_and_then_stalls_earns_one_window_at_most(
    autojump_clock: MockClock, is_gateway: bool
) -> None:
    """It was paid for a thousand tokens of which it sent none, and its record showed a success."""
    async with open_small_market(Script.BILL_AND_STALL) as market:
        client = market.coordinator.client if is_gateway else market.client
        with pytest.raises(JobFailed):
            async with client.buy(market.spec(max_tokens=1_000), market.buyer):
                pass
        await trio.sleep(600)
        assert market.nodes[0].receipts[0].message.units.output_tokens == 1_000
        window = Units(INPUT_UNITS.input_tokens, WINDOW_TOKENS_MIN - INPUT_UNITS.input_tokens)
        assert spent(market) <= cost_nano(PRICE, window)
        assert successes(market) == 0
        market.assert_books_are_closed()


async def test_money_is_free_again_soon_after_our_own_client_has_given_the_thief_up(
    autojump_clock: MockClock,
) -> None:
    """The gateway asks for five minutes: so long a user's money was held for nothing."""
    async with open_small_market(Script.BILL_AND_STALL) as market:
        client = market.coordinator.client
        with pytest.raises(JobFailed):
            async with client.buy(market.spec(max_tokens=1_000, deadline_s=300), market.buyer):
                pass
        await trio.sleep(30)
        market.assert_books_are_closed()
        assert spent(market) <= cost_nano(PRICE, INPUT_UNITS)


async def test_a_receipt_of_a_job_that_was_never_opened_is_worth_nothing(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        granted = await market.coordinator.lease_service.lease(signed_request(market, market.buyer))
        receipt = node.sign_unopened(granted.lease, (), Finish.STOP)
        assert receipt.message.amount_nano > 0
        assert (await node.hand_in(receipt)).state == ReceiptState.PENDING
        await trio.sleep(100)
        assert spent(market) == 0
        market.assert_books_are_closed()


async def test_an_answer_that_a_restart_of_ours_has_cut_is_paid_by_the_operator(
    autojump_clock: MockClock,
) -> None:
    """A tenth of the revenue was for answers that their clients never saw."""
    async with open_small_market(Script.ANSWER) as market:
        async with market.client.buy(market.spec(), market.buyer):
            market.network.kill(market.buyer.peer_id)
            await trio.sleep(1)
        receipt = market.nodes[0].receipts[-1]
        old = market.coordinator
        (lost,) = old.leases
        old.leases.end(lost)
        leases = LeaseRegistry(old.market)
        restored = OpenLease(lost.lease, "a key of our gateway", opening=Opening.UNKNOWN)
        leases.restore([restored], now_ms=market.clock.now_ms())
        payments = Payments(market.database, old.writer, clock=market.clock, fee_bps=FEE_BPS)
        service = ReceiptService(market.database, leases, payments, clock=market.clock)
        assert (await service.accept(receipt, None)).state == ReceiptState.PENDING
        await trio.sleep((restored.lone_receipt_due_ms - market.clock.now_ms()) / 1_000)
        assert await service.sweep() == 1
        assert spent(market) == 0
        assert market.account(market.nodes[0].key.peer_id).posted_nano > 0
        with market.database.transaction() as conn:
            goodwill = find_account(conn, SystemAccount.GOODWILL)
        assert goodwill is not None
        assert goodwill.posted_nano < 0
        assert restored.receipts_until_ms >= restored.restored_at_ms + RECEIPT_GRACE_MS
        market.assert_books_are_closed()
