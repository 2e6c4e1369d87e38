"""Leases that clients take before they have jobs: they keep no job from a seat or from a lease."""

from dataclasses import replace

import pytest
import trio
from trio.testing import MockClock

from coordinator.leasing.clients import UNOPENED_MAX_OF_STRANGERS
from coordinator.leasing.registry import LeaseRegistry
from coordinator.leasing.restoring import restore_leases
from protocol.envelope import Signed, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.features import Feature
from protocol.keys import SigningKey
from protocol.messages import Constraints, JobRequest, Lease
from tests.coordinator.lease_requests import signed_request
from tests.coordinator.leasing.test_openings import OVER_S, busy_seats, report_forever
from tests.coordinator.leasing.test_registry import restored_clients
from tests.coordinator.small_market import (
    OPENING_CREDIT_NANO,
    Script,
    SmallMarket,
    give_credit,
    open_small_market,
)
from tests.protocol.makers import STRANGER

AHEAD_OF_STRANGERS = UNOPENED_MAX_OF_STRANGERS // 2
# Of a node in a small market.
SLOTS = 4


def ahead(market: SmallMarket, key: SigningKey) -> Signed[JobRequest]:
    asked = signed_request(market, key).message
    constraints = Constraints(features=(Feature.LATE_PAYLOAD,))
    return seal(key, replace(asked, payload_digest=None, constraints=constraints))


async def lease_ahead(market: SmallMarket, key: SigningKey = STRANGER) -> Signed[Lease]:
    return (await market.coordinator.lease_service.lease(ahead(market, key))).lease


async def lease(market: SmallMarket, key: SigningKey = STRANGER) -> Signed[Lease]:
    return (
        await market.coordinator.lease_service.lease(signed_request(market, key), wait_s=0)
    ).lease


def pay_in(market: SmallMarket) -> None:
    with market.database.transaction() as conn:
        give_credit(conn, STRANGER.peer_id, OPENING_CREDIT_NANO, market.clock.now_ms())


async def test_only_nodes_that_take_late_payloads_are_leased_ahead(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        (node,) = market.nodes
        node.features = ()
        plain = replace(node.offer().message, sequence=1)
        market.coordinator.market.book.accept(
            seal(node.key, plain).raw, now_ms=market.clock.now_ms(), via=node.key.peer_id
        )
        with pytest.raises(RemoteProtocolError) as caught:
            await lease_ahead(market, market.buyer)
        assert caught.value.code is Code.NO_NODE_FITS
        await lease(market, market.buyer)


async def test_leases_ahead_take_idle_seats_only_and_yield_them_at_once(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        pay_in(market)
        for _ in range(SLOTS):
            await lease_ahead(market)
        assert busy_seats(market) == SLOTS
        started_at = trio.current_time()
        for _ in range(SLOTS):
            await lease(market, market.buyer)
        assert trio.current_time() == started_at
        assert busy_seats(market) == SLOTS
        with pytest.raises(RemoteProtocolError) as caught:
            await lease_ahead(market, market.buyer)
        assert caught.value.code is Code.NO_NODE_FITS
        assert trio.current_time() == started_at


async def test_leases_ahead_are_few_and_keep_no_job_of_their_client_from_a_lease(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(*[Script.ANSWER] * 5) as market:
        pay_in(market)
        for _ in range(AHEAD_OF_STRANGERS):
            await lease_ahead(market)
        with pytest.raises(RemoteProtocolError) as caught:
            await lease_ahead(market)
        assert caught.value.code is Code.RATE_LIMITED
        for _ in range(UNOPENED_MAX_OF_STRANGERS):
            await lease(market)


async def test_a_lease_ahead_that_lapses_gives_its_money_back_and_is_no_fault(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        pay_in(market)
        market.nursery.start_soon(report_forever, market.nodes[0])
        for _ in range(AHEAD_OF_STRANGERS):
            await lease_ahead(market)
        await trio.sleep(OVER_S)
        assert busy_seats(market) == 0
        assert market.account(STRANGER.peer_id).held_nano == 0
        record = market.coordinator.leases.clients.look_up(STRANGER.peer_id)
        assert record.standing > 0
        market.assert_books_are_closed()
        await lease_ahead(market)
        restored = await restored_clients(market)
        assert restored.clients.look_up(STRANGER.peer_id).standing > 0


async def test_leases_ahead_yield_their_seats_after_a_restart_too(
    autojump_clock: MockClock,
) -> None:
    """A coordinator that restarts finds its own gateway's leases, which no job will open."""
    async with open_small_market(Script.ANSWER) as market:
        pay_in(market)
        for _ in range(SLOTS - 1):
            await lease_ahead(market)
        used = await lease(market)
        leases = LeaseRegistry(market.coordinator.market)
        await restore_leases(market.database, leases, now_ms=market.clock.now_ms())
        assert busy_seats(market) == SLOTS
        assert leases.yield_ahead()
        assert busy_seats(market) == 1
        assert not leases.yield_ahead()
        assert len(leases) == SLOTS, "a node may have opened them: their receipts are paid"
        assert leases.get(used.message.lease_id) is not None
