"""A lease's life: what a request without money changes, and what a restart leaves behind."""

import random
from dataclasses import replace
from unittest.mock import Mock

import pytest
import trio
from trio.testing import MockClock

from coordinator.leasing.open_lease import OpenLease
from coordinator.leasing.registry import LeaseRegistry
from coordinator.leasing.restoring import restore_clients, restore_leases, restore_records
from coordinator.market.breaker import FAILURES_TO_OPEN, BreakerState
from coordinator.market.market import Market
from coordinator.market.offers import OfferBook
from coordinator.market.reputation import NodeStanding, Reputation, Source
from coordinator.market.seats import SEATS_AT_START
from protocol.blame import Blame
from protocol.endings import Finish, ReceiptState
from protocol.envelope import Signed, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import JobId, new_ulid
from protocol.messages import JobRequest, Lease
from protocol.services import AttachAsk, AttachReply, LoadAck, Method
from tests.coordinator.lease_requests import signed_request
from tests.coordinator.small_market import Script, SmallMarket, give_credit, open_small_market
from tests.protocol.makers import STRANGER


def standing(market: SmallMarket) -> NodeStanding:
    found = market.coordinator.market.reputation.standing(
        market.nodes[0].key.peer_id, now_ms=market.clock.now_ms()
    )
    assert found is not None
    return found


def rows(market: SmallMarket) -> int:
    """In every table that a request could leave something in."""
    with market.database.transaction() as conn:
        return sum(
            conn.exec_driver_sql(f"SELECT count(*) FROM {table}").scalar_one()
            for table in ("jobs", "leases", "transfers", "failed_ids")
        )


async def code_of_lease(market: SmallMarket, request: Signed[JobRequest]) -> Code:
    with pytest.raises(RemoteProtocolError) as caught:
        await market.coordinator.lease_service.lease(request, wait_s=0)
    return caught.value.code


async def break_node(market: SmallMarket) -> None:
    """Until its breaker is open, and as long as it takes to half-open again."""
    node = market.nodes[0]
    seen = Source(market.buyer.peer_id, 1.0, is_first_hand=True)
    for _ in range(FAILURES_TO_OPEN):
        market.coordinator.market.reputation.record_code(
            node.key.peer_id, Code.NODE_LOST, Blame.FAILURE, seen, now_ms=market.clock.now_ms()
        )
    while standing(market).breaker is BreakerState.OPEN:
        await trio.sleep(1)
        await node.call(Method.LOAD, node.load(), LoadAck)


@pytest.mark.parametrize("credit_nano", [0, 1])
async def test_a_request_without_money_takes_no_probe_no_seat_and_no_row(
    autojump_clock: MockClock, credit_nano: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger kept a repaired node out of the market by asking for it once a minute."""
    async with open_small_market(Script.ANSWER) as market:
        await break_node(market)
        if credit_nano:
            with market.database.transaction() as conn:
                give_credit(conn, STRANGER.peer_id, credit_nano, market.clock.now_ms())
        before, open_before = rows(market), len(market.coordinator.leases)
        wanted = Code.OUT_OF_FUNDS if credit_nano else Code.UNKNOWN_ACCOUNT
        # Not even for the moment that a hold takes to fail.
        reserve = Mock(side_effect=AssertionError("a side effect before funds"))
        with monkeypatch.context() as patched:
            patched.setattr(Market, "reserve", reserve)
            for _ in range(5):
                assert await code_of_lease(market, signed_request(market, STRANGER)) is wanted
        reserve.assert_not_called()
        assert rows(market) == before
        assert len(market.coordinator.leases) == open_before
        assert standing(market).breaker is BreakerState.HALF_OPEN
        granted = await market.coordinator.lease_service.lease(signed_request(market, market.buyer))
        assert granted.lease.message.node == market.nodes[0].key.peer_id


async def test_a_reservation_that_is_cancelled_gives_its_probe_back(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        await break_node(market)
        granted = await market.coordinator.lease_service.lease(signed_request(market, market.buyer))
        assert standing(market).blocked_until_ms > market.clock.now_ms()
        opened = market.coordinator.leases.get(granted.lease.message.lease_id)
        assert opened is not None
        assert opened.probe.is_nodes
        market.coordinator.market.cancel(granted.lease.message, opened.probe)
        assert standing(market).blocked_until_ms <= market.clock.now_ms()


def only(market: SmallMarket) -> OpenLease:
    (opened,) = market.coordinator.leases
    return opened


async def test_after_an_outage_a_squatter_cannot_make_a_lease_be_forgotten(
    autojump_clock: MockClock,
) -> None:
    """The job is long over, its lease is open as long as its node may hand a receipt in."""
    async with open_small_market(Script.ANSWER) as market:
        request = signed_request(market, market.buyer)
        granted = await market.coordinator.lease_service.lease(request)
        leases = LeaseRegistry(market.coordinator.market)
        late_ms = market.clock.now_ms() + 180_000
        market.coordinator.leases.end(only(market))
        await restore_leases(market.database, leases, now_ms=late_ms)
        leases.jobs.forget(late_ms + 2_000)
        other = signed_request(market, market.buyer, job_id=request.message.job_id, output_tokens=9)
        with pytest.raises(RemoteProtocolError) as caught:
            leases.jobs.next_attempt(other)
        assert caught.value.code is Code.ALREADY_EXISTS
        imitation = OpenLease(granted.lease, None)
        with pytest.raises(RemoteProtocolError):
            leases.reserve(imitation, part=0)
        leases.cancel(imitation)
        assert leases.get(granted.lease.message.lease_id) is not None


def busy(market: SmallMarket) -> int:
    """How many seats of the only node are taken."""
    entry = market.coordinator.market.book.get(market.nodes[0].key.peer_id)
    assert entry is not None
    return sum(len(state.leases) for state in entry.models.values())


async def test_a_job_that_our_own_end_has_cut_takes_no_seat_after_the_restart(
    autojump_clock: MockClock,
) -> None:
    """Ten such leases took every seat of four idle nodes for five minutes."""
    async with open_small_market(Script.ANSWER) as market:
        await market.coordinator.lease_service.lease(signed_request(market, market.buyer))
        cut = only(market)
        market.coordinator.leases.end(cut)
        assert busy(market) == 0
        leases = LeaseRegistry(market.coordinator.market)
        leases.restore([OpenLease(cut.lease, "a key of ours")], now_ms=market.clock.now_ms())
        assert busy(market) == 0, "its buyer has ended with us: the job runs no more"
        assert len(leases) == 1, "its receipt may still come"


async def test_a_receipt_frees_the_seat_although_it_is_paid_later(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        granted = await market.coordinator.lease_service.lease(signed_request(market, market.buyer))
        assert busy(market) == 1
        reply = await node.hand_in(node.sign_unopened(granted.lease, (), Finish.STOP))
        assert reply.state == ReceiptState.PENDING
        assert busy(market) == 0
        leases = LeaseRegistry(market.coordinator.market)
        await restore_leases(market.database, leases, now_ms=market.clock.now_ms())
        assert busy(market) == 0, "nor after a restart"


def fresh_market(market: SmallMarket) -> Market:
    """As a new process makes it."""
    reputation = Reputation(rng=random.Random(1))
    return Market(
        OfferBook(reputation),
        reputation,
        clock=market.clock,
        rng=random.Random(2),
        stopwatch_ns=lambda: 0,
    )


@pytest.mark.parametrize("is_gateway", [True, False])
async def test_a_node_keeps_its_record_over_a_restart_of_the_coordinator(
    autojump_clock: MockClock, is_gateway: bool
) -> None:
    """As strangers, four nodes of one machine were shut out by the next failure of one of them."""
    async with open_small_market(Script.ANSWER) as market:
        node, old = market.nodes[0].key.peer_id, market.coordinator.market
        client = market.coordinator.client if is_gateway else market.client
        for _ in range(12):
            async with client.buy(market.spec(), market.buyer) as purchase:
                _ = [chunk async for chunk in purchase]
        await trio.sleep(5)
        now_ms = market.clock.now_ms()
        assert old.reputation.is_proven(node, now_ms=now_ms)
        fresh = fresh_market(market)
        await restore_records(market.database, fresh, now_ms=now_ms)
        assert fresh.reputation.is_proven(node, now_ms=now_ms)
        found = fresh.reputation.standing(node, now_ms=now_ms)
        assert found is not None
        assert found.seats > SEATS_AT_START
        morning_ms = now_ms + 8 * 3_600_000
        later = fresh_market(market)
        await restore_records(market.database, later, now_ms=morning_ms)
        assert later.reputation.is_proven(node, now_ms=morning_ms), "also after a quiet night"
        much_later = fresh_market(market)
        await restore_records(market.database, much_later, now_ms=now_ms + 48 * 3_600_000)
        assert len(much_later.reputation) == 0, "what is long past is forgotten"


async def restored_clients(market: SmallMarket) -> LeaseRegistry:
    """As after a restart of the coordinator."""
    leases = LeaseRegistry(fresh_market(market))
    await restore_clients(market.database, leases, now_ms=market.clock.now_ms())
    return leases


async def test_a_client_keeps_its_record_over_a_restart_of_the_coordinator(
    autojump_clock: MockClock,
) -> None:
    """A client that signed for nothing began anew whenever the coordinator did."""
    async with open_small_market(Script.ANSWER) as market:
        for _ in range(5):
            await market.buy()
        await market.client.wait_settled()
        before = market.coordinator.leases.clients.look_up(market.buyer.peer_id)
        assert before.paid_nano > 0
        leases = await restored_clients(market)
        assert leases.clients.look_up(market.buyer.peer_id) == before


async def test_a_client_that_opened_nothing_is_known_after_a_restart(
    autojump_clock: MockClock,
) -> None:
    """Whatever time it writes into the ids of its jobs."""
    async with open_small_market(Script.ANSWER) as market:
        for number in range(4):
            old = JobId(new_ulid(number * 4_000_000_000_000, bytes([number]) * 10))
            request = signed_request(market, market.buyer, job_id=old)
            await market.coordinator.lease_service.lease(request)
        node = market.nodes[0]
        for _ in range(20):
            await trio.sleep(5)
            await node.call(Method.LOAD, node.load(), LoadAck)
        assert market.coordinator.leases.clients.look_up(market.buyer.peer_id).is_bad
        leases = await restored_clients(market)
        assert leases.clients.look_up(market.buyer.peer_id).is_bad


async def test_a_younger_process_of_a_node_frees_the_seats_of_the_older(
    autojump_clock: MockClock,
) -> None:
    """Restored leases blocked an idle node that had restarted for ten minutes."""
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        await market.coordinator.lease_service.lease(signed_request(market, market.buyer))
        leases = LeaseRegistry(market.coordinator.market)
        await restore_leases(market.database, leases, now_ms=market.clock.now_ms())
        leases.note_attached(node.key.peer_id, node.incarnation_ms)
        assert busy(market) == 1, "the process that was leased is still there"
        leases.note_attached(node.key.peer_id, node.incarnation_ms + 1)
        assert busy(market) == 0
        assert len(leases) == 1, "its receipt may still come"


@pytest.mark.parametrize("is_opened", [True, False])
async def test_a_hold_without_a_receipt_counts_against_the_party_that_failed(
    autojump_clock: MockClock, is_opened: bool
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        node, coordinator = market.nodes[0], market.coordinator
        granted = await coordinator.lease_service.lease(signed_request(market, market.buyer))
        if is_opened:
            opened = (granted.lease.message.lease_id,)
            await node.call(Method.LOAD, replace(node.load(), opened=opened), LoadAck)
        await trio.sleep(200)
        assert len(coordinator.leases) == 0
        assert standing(market).failures == (1 if is_opened else 0)
        record = coordinator.leases.clients.look_up(market.buyer.peer_id)
        assert (record.unopened > 0) is not is_opened
        market.assert_books_are_closed()


async def test_a_lone_receipt_is_no_success_of_its_node(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        granted = await market.coordinator.lease_service.lease(signed_request(market, market.buyer))
        await node.hand_in(node.sign_unopened(granted.lease, (), Finish.STOP))
        await trio.sleep(100)
        assert len(market.coordinator.leases) == 0
        assert standing(market).successes == 0
        assert market.account(market.buyer.peer_id).held_nano == 0


async def test_another_lone_receipt_does_not_replace_the_one_that_waits(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        granted = await market.coordinator.lease_service.lease(signed_request(market, market.buyer))
        first = node.sign_unopened(granted.lease, (), Finish.STOP)
        await node.hand_in(first)
        other = seal(node.key, replace(first.message, first_output_ms=9))
        with pytest.raises(RemoteProtocolError) as caught:
            await node.hand_in(other)
        assert caught.value.code is Code.RECEIPT_MISMATCH
        assert (await node.hand_in(first)).state == "pending"


async def test_a_purchase_goes_on_as_its_next_part(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        service = market.coordinator.lease_service
        first = signed_request(market, market.buyer)
        leased: list[Lease] = [(await service.lease(first)).lease.message]
        second = signed_request(market, market.buyer, job_id=first.message.job_id, part=1)
        leased.append((await service.lease(second)).lease.message)
        assert [lease.attempt for lease in leased] == [0, 1]
        assert await code_of_lease(market, first) is Code.ALREADY_EXISTS


async def seats_after(market: SmallMarket, *, leased_by_gateway: bool, load_ahead_ms: int) -> int:
    """Of a lease whose node then attaches as a process that began later."""
    node = market.nodes[0]
    granted = await market.coordinator.lease_service.lease(signed_request(market, market.buyer))
    opened = market.coordinator.leases.get(granted.lease.message.lease_id)
    assert opened is not None
    opened.api_key_id = "key" if leased_by_gateway else None
    await trio.sleep(1)
    later = replace(
        node.offer(sequence=1).message,
        incarnation_ms=node.incarnation_ms + (0 if load_ahead_ms else 1),
    )
    load = replace(node.load(), incarnation_ms=later.incarnation_ms + load_ahead_ms)
    await node.call(Method.ATTACH, AttachAsk(seal(node.key, later).raw, load), AttachReply)
    return busy(market)


@pytest.mark.parametrize(
    ("leased_by_gateway", "load_ahead_ms", "seats"),
    [(True, 0, 1), (False, 0, 0), (False, 10_000, 1)],
    ids=["our gateway sees for itself", "a client elsewhere", "only its load report is younger"],
)
async def test_a_node_frees_no_seats_by_saying_that_it_restarted(
    autojump_clock: MockClock, leased_by_gateway: bool, load_ahead_ms: int, seats: int
) -> None:
    """A silent node got as many jobs as it liked, four more with each such word."""
    async with open_small_market(Script.ANSWER) as market:
        assert seats == await seats_after(
            market, leased_by_gateway=leased_by_gateway, load_ahead_ms=load_ahead_ms
        )
