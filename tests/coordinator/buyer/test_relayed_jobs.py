"""A node that cannot be dialled sells through its coordinator's relay."""

import trio
from trio.testing import MockClock

from protocol.net.memory_wire import Conditions
from tests.coordinator.small_market import (
    WORDS,
    Script,
    ScriptedNode,
    SmallMarket,
    open_small_market,
)

# From buyer to node it is as far through the relay as without it.
LEG_S = 0.025
ROUND_TRIP_S = 4 * LEG_S


def hide(nodes: list[ScriptedNode]) -> None:
    for node in nodes:
        node.transport.is_dialable = False


def set_distances(market: SmallMarket) -> None:
    buyer, node, relay = market.buyer.peer_id, market.nodes[0].key.peer_id, market.coordinator.key
    for end in (buyer, node):
        market.network.set_conditions(end, relay.peer_id, Conditions(latency_s=LEG_S))
    market.network.set_conditions(buyer, node, Conditions(latency_s=2 * LEG_S))


async def first_token_after_s(market: SmallMarket) -> float:
    """Of one job that is read to its end."""
    began_at, first_at = trio.current_time(), 0.0
    async with market.client.buy(market.spec(), market.buyer) as stream:
        async for _ in stream:
            first_at = first_at or trio.current_time()
    return first_at - began_at


async def test_a_job_runs_and_is_paid_through_a_relay(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER, adjust=hide) as market:
        chunks = await market.buy()
        assert [chunk.text for chunk in chunks] == list(WORDS)
        await market.client.wait_settled()
        assert market.coordinator.transport.statistics().circuits == 1
        assert (await market.leaser.balance()).spent_nano > 0


async def test_a_relay_costs_at_most_a_round_trip_to_the_first_token(
    autojump_clock: MockClock,
) -> None:
    """Of the first job, which makes the connection (a round trip for TCP and one for Noise, in this
    network), and of those that follow."""
    async with open_small_market(Script.ANSWER) as market:
        set_distances(market)
        direct_s = [await first_token_after_s(market) for _ in range(2)]
    async with open_small_market(Script.ANSWER, adjust=hide) as market:
        set_distances(market)
        relayed_s = [await first_token_after_s(market) for _ in range(2)]
        assert market.coordinator.transport.statistics().circuits == 1
    for relayed, direct in zip(relayed_s, direct_s, strict=True):
        assert relayed - direct <= ROUND_TRIP_S
