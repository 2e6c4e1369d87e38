"""Leases that are never opened cost their client its place, and the market nothing for long."""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from coordinator.leasing.clients import UNOPENED_MAX_OF_STRANGERS
from coordinator.leasing.open_lease import Opening
from protocol.countersigning import Delivery
from protocol.endings import LeaseState
from protocol.envelope import Signed, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import LeaseId
from protocol.keys import SigningKey
from protocol.limits import SALT_BYTES
from protocol.messages import Lease
from protocol.payload import OutputDigest
from protocol.pricing import Units
from protocol.services import LoadAck, Method
from tests.coordinator.lease_requests import signed_request
from tests.coordinator.small_market import (
    OPENING_CREDIT_NANO,
    Script,
    ScriptedNode,
    SmallMarket,
    give_credit,
    open_small_market,
)
from tests.protocol.makers import STRANGER

# Until a lease can be opened no more, whatever the node's clock says, and some reports are lost.
OVER_S = 90


def busy_seats(market: SmallMarket) -> int:
    book = market.coordinator.market.book
    return sum(len(state.leases) for entry in book for state in entry.models.values())


async def lease(
    market: SmallMarket, key: SigningKey, *, deadline_ms: int = 600_000
) -> Signed[Lease]:
    request = signed_request(market, key, deadline_ms=deadline_ms)
    return (await market.coordinator.lease_service.lease(request, wait_s=0)).lease


async def report_forever(node: ScriptedNode, *opened: LeaseId) -> None:
    """As a node does, every few seconds."""
    while True:
        await node.call(Method.LOAD, replace(node.load(), opened=opened), LoadAck)
        await trio.sleep(5)


async def test_a_lease_that_is_never_opened_gives_seat_and_money_back(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        market.nursery.start_soon(report_forever, market.nodes[0])
        unopened = await lease(market, market.buyer)
        assert busy_seats(market) == 1
        await trio.sleep(OVER_S)
        assert busy_seats(market) == 0
        assert market.account(market.buyer.peer_id).held_nano == 0
        market.assert_books_are_closed()
        with market.database.transaction() as conn:
            state = conn.exec_driver_sql(
                "SELECT state FROM leases WHERE lease_id = ?", (unopened.message.lease_id,)
            ).scalar_one()
        assert state == LeaseState.RELEASED.value


async def test_a_lease_that_its_node_reports_keeps_seat_and_hold(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        opened = await lease(market, market.buyer)
        market.nursery.start_soon(report_forever, market.nodes[0], opened.message.lease_id)
        await trio.sleep(OVER_S)
        assert busy_seats(market) == 1
        assert market.account(market.buyer.peer_id).held_nano == opened.message.ceiling_nano


async def test_a_node_reports_only_its_own_leases(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER, Script.ANSWER) as market:
        leased = await lease(market, market.buyer)
        (other,) = (n for n in market.nodes if n.key.peer_id != leased.message.node)
        for node in market.nodes:
            opened = (leased.message.lease_id,) if node is other else ()
            market.nursery.start_soon(report_forever, node, *opened)
        await trio.sleep(OVER_S)
        assert busy_seats(market) == 0


async def test_a_stranger_gets_few_leases_that_it_does_not_open(autojump_clock: MockClock) -> None:
    """One client with a millionth of a credit must not take every seat of the market."""
    async with open_small_market(*[Script.ANSWER] * 5) as market:
        with market.database.transaction() as conn:
            give_credit(conn, STRANGER.peer_id, OPENING_CREDIT_NANO, market.clock.now_ms())
        for _ in range(UNOPENED_MAX_OF_STRANGERS):
            await lease(market, STRANGER)
        with pytest.raises(RemoteProtocolError) as caught:
            await lease(market, STRANGER)
        assert caught.value.code is Code.RATE_LIMITED
        assert busy_seats(market) == UNOPENED_MAX_OF_STRANGERS
        assert len(await market.buy()) == 4


async def test_a_client_waits_for_its_leases_to_be_opened(autojump_clock: MockClock) -> None:
    async with open_small_market(*[Script.ANSWER] * 5) as market:
        first = [await lease(market, market.buyer) for _ in range(UNOPENED_MAX_OF_STRANGERS)]
        granted: list[LeaseId] = []

        async def lease_one_more() -> None:
            request = signed_request(market, market.buyer)
            granted.append(
                (await market.coordinator.lease_service.lease(request)).lease.message.lease_id
            )

        async with trio.open_nursery() as nursery:
            nursery.start_soon(lease_one_more)
            await trio.sleep(1)
            assert not granted
            (node,) = (n for n in market.nodes if n.key.peer_id == first[0].message.node)
            report = replace(node.load(), opened=(first[0].message.lease_id,))
            await node.call(Method.LOAD, report, LoadAck)
        assert len(granted) == 1


async def test_a_client_that_leaves_leases_unopened_gets_them_one_at_a_time(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(*[Script.ANSWER] * 5) as market:
        for node in market.nodes:
            market.nursery.start_soon(report_forever, node)
        for _ in range(UNOPENED_MAX_OF_STRANGERS):
            await lease(market, market.buyer)
        await trio.sleep(OVER_S)
        again = await lease(market, market.buyer)
        assert again.message.client_standing == 0
        with pytest.raises(RemoteProtocolError) as caught:
            await lease(market, market.buyer)
        assert caught.value.code is Code.RATE_LIMITED


async def test_another_lease_of_the_same_job_ends_the_wait_for_the_earlier(
    autojump_clock: MockClock,
) -> None:
    """Found by seed 17 of the simulator: a client whose nodes were out of its reach was told that
    it leaves leases unopened."""
    async with open_small_market(Script.ANSWER, Script.ANSWER) as market:
        request = signed_request(market, market.buyer)
        for _ in range(UNOPENED_MAX_OF_STRANGERS + 2):
            await market.coordinator.lease_service.lease(request, wait_s=0)
        assert busy_seats(market) == 1
        awaited = [lease for lease in market.coordinator.leases if lease.opening is Opening.AWAITED]
        assert len(awaited) == 1


def nothing_came(market: SmallMarket, lease: Signed[Lease]) -> Signed[Delivery]:
    """The word of a client that could not reach the node."""
    return seal(
        market.buyer,
        Delivery(
            lease_id=lease.message.lease_id,
            lease_digest=lease.digest,
            client=market.buyer.peer_id,
            units=Units(),
            output_digest=OutputDigest(bytes(SALT_BYTES)).hexdigest(),
            code=Code.NODE_LOST,
            issued_at_ms=market.clock.now_ms(),
        ),
    )


async def test_a_client_that_says_that_nothing_came_is_not_told_that_it_squats(
    autojump_clock: MockClock,
) -> None:
    """What an honest client sent did not reach its nodes. It was told `rate_limited` for leases
    that it could not open, and its record was bad for all of them."""
    async with open_small_market(*[Script.ANSWER] * 5) as market:
        for node in market.nodes:
            market.nursery.start_soon(report_forever, node)
        for _ in range(2 * UNOPENED_MAX_OF_STRANGERS):
            cut_off = await lease(market, market.buyer)
            await market.coordinator.lease_service.declare(nothing_came(market, cut_off))
        assert busy_seats(market) == 0
        await trio.sleep(OVER_S)
        record = market.coordinator.leases.clients.look_up(market.buyer.peer_id)
        assert record.unopened == 0
        assert market.account(market.buyer.peer_id).held_nano == 0, "its money is free as soon"
        assert (await lease(market, market.buyer)).message.client_standing > 0


async def test_a_node_that_was_reached_all_the_same_says_so(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        reached = await lease(market, market.buyer)
        await market.coordinator.lease_service.declare(nothing_came(market, reached))
        market.nursery.start_soon(report_forever, market.nodes[0], reached.message.lease_id)
        await trio.sleep(OVER_S)
        assert market.account(market.buyer.peer_id).held_nano > 0, "its receipt may still come"


async def test_a_refusal_says_what_the_client_did(autojump_clock: MockClock) -> None:
    async with open_small_market(*[Script.ANSWER] * 5) as market:
        for node in market.nodes:
            market.nursery.start_soon(report_forever, node)
        for _ in range(UNOPENED_MAX_OF_STRANGERS):
            await lease(market, market.buyer)
        with pytest.raises(RemoteProtocolError, match="8 leases that no node has reported") as few:
            await lease(market, market.buyer)
        assert "because" not in str(few.value), "its record is good"
        await trio.sleep(OVER_S)
        await lease(market, market.buyer)
        with pytest.raises(RemoteProtocolError, match="it did not open 8 of its last leases"):
            await lease(market, market.buyer)


async def test_leases_whose_jobs_cannot_run_yield_their_seats_to_those_who_wait(
    autojump_clock: MockClock,
) -> None:
    """Four accounts with payloads that trickled, or with leases that they did not open, took all
    seats of a node for half a minute."""
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        taken = [await lease(market, market.buyer) for _ in range(4)]
        uploading, running = taken[0].message.lease_id, taken[1].message.lease_id
        for _ in range(4):
            report = replace(node.load(), opened=(uploading, running), arriving=(uploading,))
            await node.call(Method.LOAD, report, LoadAck)
            await trio.sleep(3)
        assert busy_seats(market) == 4, "they keep them while no other client waits"
        with market.database.transaction() as conn:
            give_credit(conn, STRANGER.peer_id, OPENING_CREDIT_NANO, market.clock.now_ms())
        request = signed_request(market, STRANGER)
        await market.coordinator.lease_service.lease(request, wait_s=5)
        assert busy_seats(market) == 2, "the job that runs, and the newcomer's"
        opened = market.coordinator.leases.get(uploading)
        assert opened is not None, "an upload may still be run"
