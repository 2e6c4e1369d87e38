"""Nodes on their control streams: attached, silent, gone, and twice at once."""

import random

import trio
from trio.testing import MockClock

from coordinator.leasing.control import SILENT_AFTER_S
from protocol.net.pool import StreamPool
from protocol.net.rpc import RpcClient
from protocol.services import CONTROL_PROTOCOL, LoadAck, Method
from tests.coordinator.small_market import Script, SmallMarket, open_small_market


def is_attached(market: SmallMarket) -> bool:
    entry = market.coordinator.market.book.get(market.nodes[0].key.peer_id)
    assert entry is not None
    return entry.is_attached


async def test_a_node_that_falls_silent_is_detached(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        await trio.sleep(SILENT_AFTER_S - 1)
        assert is_attached(market)
        await market.nodes[0].call(Method.LOAD, market.nodes[0].load(), LoadAck)
        await trio.sleep(SILENT_AFTER_S - 1)
        assert is_attached(market)
        await trio.sleep(10)
        assert not is_attached(market)
        assert market.coordinator.control.attached == 0


async def test_a_node_whose_connection_breaks_is_detached_at_once(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        market.network.kill(market.nodes[0].key.peer_id)
        await trio.sleep(1)
        assert not is_attached(market)


async def test_the_end_of_one_of_two_streams_detaches_nobody(autojump_clock: MockClock) -> None:
    """A node that comes back may be served anew before its old stream is known to have ended."""
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        pool = StreamPool(node.transport, CONTROL_PROTOCOL, role="node", rng=random.Random(2))
        async with trio.open_nursery() as nursery:
            await nursery.start(pool.run)
            await RpcClient(pool).call(
                node.coordinator, Method.LOAD, node.load(), LoadAck, timeout_s=5
            )
            nursery.cancel_scope.cancel()
        await trio.sleep(1)
        assert is_attached(market)
