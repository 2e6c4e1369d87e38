"""Nodes on their control streams: attached, silent, gone, and twice at once."""

import random
from dataclasses import replace

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from coordinator.leasing.control import SILENT_AFTER_S
from protocol.errors import Code, RemoteProtocolError
from protocol.limits import OFFER_BYTES_MAX
from protocol.net.pool import StreamPool
from protocol.net.rpc import RpcClient
from protocol.services import (
    CONTROL_PROTOCOL,
    AttachAsk,
    AttachReply,
    LoadAck,
    Method,
    NodesAsk,
)
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


@pytest.mark.parametrize(("draining", "health"), [(False, "unsteady"), (True, "closed")])
async def test_a_node_that_goes_away_often_without_a_goodbye_is_unsteady(
    autojump_clock: MockClock, draining: bool, health: str
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        for number in (1, 2):
            report = replace(node.load(), draining=draining)
            await node.call(Method.LOAD, report, LoadAck)
            node.pool.close(node.coordinator)
            await trio.sleep(10)
            await node.call(
                Method.ATTACH,
                AttachAsk(node.offer(sequence=number).raw, node.load()),
                AttachReply,
            )
        (summary,) = market.coordinator.market.nodes(NodesAsk()).nodes
        assert summary.health == health


async def test_a_refreshed_offer_is_no_new_arrival(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        with capture_logs() as logs:
            await trio.sleep(5)
            refreshed = AttachAsk(node.offer(sequence=2).raw, node.load())
            await node.call(Method.ATTACH, refreshed, AttachReply)
        assert "node_attached" not in [entry["event"] for entry in logs]
        assert market.coordinator.control.attached == 1


async def code_of_attach(market: SmallMarket, offer: bytes) -> Code | None:
    node = market.nodes[0]
    try:
        await node.call(Method.ATTACH, AttachAsk(offer, node.load()), AttachReply)
    except RemoteProtocolError as error:
        return error.code
    return None


async def test_an_offer_that_attaches_passes_the_checks_of_gossip_in_their_order(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its signature was checked, and all of it decoded, before its size and how often it comes."""
    async with open_small_market(Script.ANSWER, Script.ANSWER) as market:
        node, other = market.nodes
        assert await code_of_attach(market, other.offer().raw) is Code.WRONG_SIGNER
        assert await code_of_attach(market, bytes(OFFER_BYTES_MAX + 1)) is Code.FRAME_TOO_LARGE
        codes = [
            await code_of_attach(market, node.offer(sequence=number).raw) for number in range(1, 20)
        ]
        assert codes[0] is None
        assert codes[-1] is Code.RATE_LIMITED
        with monkeypatch.context() as patched:
            patched.setattr("protocol.envelope.verify", _must_not_be_reached)
            again = node.offer(sequence=21).raw
            assert await code_of_attach(market, again) is Code.RATE_LIMITED
            stolen = other.offer(sequence=22).raw
            assert await code_of_attach(market, stolen) is Code.WRONG_SIGNER


def _must_not_be_reached(*_: object) -> None:
    raise AssertionError("a signature was checked for nothing")
