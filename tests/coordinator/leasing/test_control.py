"""Nodes on their control streams: attached, silent, gone, and twice at once."""

import random
from dataclasses import replace

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from coordinator.leasing.control import BUSY_SILENT_AFTER_S, SILENT_AFTER_S
from protocol.errors import Code, RemoteProtocolError
from protocol.limits import OFFER_BYTES_MAX
from protocol.net.pool import StreamPool
from protocol.net.rpc import RpcClient
from protocol.offers import LoadReport
from protocol.services import (
    CONTROL_PROTOCOL,
    AttachAsk,
    AttachReply,
    LoadAck,
    Method,
    NodesAsk,
    Notice,
)
from protocol.standing import StandingAsk, StandingReply
from tests.coordinator.lease_requests import signed_request
from tests.coordinator.small_market import Script, ScriptedNode, SmallMarket, open_small_market


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


def health_of(market: SmallMarket) -> str:
    (summary,) = market.coordinator.market.nodes(NodesAsk()).nodes
    return summary.health


async def report_as(node: ScriptedNode, incarnation_ms: int) -> tuple[Notice, ...]:
    report = replace(node.load(), incarnation_ms=incarnation_ms)
    return (await node.call(Method.LOAD, report, LoadAck)).notices


async def test_two_processes_with_one_key_are_told_at_once_and_the_last_is_soon_back(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        first = node.incarnation_ms
        await trio.sleep(5)
        twin = first + 5_000
        attach = AttachAsk(node.offer(incarnation_ms=twin, sequence=1).raw, node.load())
        await node.call(Method.ATTACH, replace(attach, load=_load_of(node, twin)), AttachReply)
        await trio.sleep(4)
        assert await report_as(node, first) == (Notice.TWIN,)
        assert await report_as(node, twin) == (Notice.TWIN,)
        assert "two running nodes" in health_of(market)
        # The twin, which is the later one, ends.
        ended_at = trio.current_time()
        for _ in range(4):
            await trio.sleep(5)
            notices = await report_as(node, first)
        assert notices == (Notice.OUTRANKED,)
        anew = first + round(1_000 * (trio.current_time() - ended_at)) + 20_000
        offer = node.offer(incarnation_ms=anew, issued_at_ms=anew, expires_at_ms=anew + 100_000)
        await node.call(Method.ATTACH, AttachAsk(offer.raw, _load_of(node, anew)), AttachReply)
        assert await report_as(node, anew) == ()
        assert health_of(market) == "closed"
        assert trio.current_time() - ended_at < 30


async def test_the_later_of_two_processes_is_back_when_the_earlier_one_ends(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        await trio.sleep(1)
        first, twin = node.incarnation_ms, node.incarnation_ms + 1
        offer = node.offer(incarnation_ms=twin, sequence=1).raw
        await node.call(Method.ATTACH, AttachAsk(offer, _load_of(node, twin)), AttachReply)
        await trio.sleep(5)
        assert await report_as(node, first) == (Notice.TWIN,)
        for _ in range(8):
            await trio.sleep(5)
            await report_as(node, twin)
        assert await report_as(node, twin) == ()
        assert health_of(market) == "closed"


async def test_a_node_with_a_running_job_is_not_taken_for_dead_while_it_is_silent(
    autojump_clock: MockClock,
) -> None:
    """One core may compute a prompt for a minute, and not get to report."""
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        request = signed_request(market, market.buyer, deadline_ms=120_000)
        granted = await market.coordinator.lease_service.lease(request)
        opened = replace(node.load(), opened=(granted.lease.message.lease_id,))
        await node.call(Method.LOAD, opened, LoadAck)
        await trio.sleep(BUSY_SILENT_AFTER_S - 5)
        assert is_attached(market)
        await trio.sleep(2 * SILENT_AFTER_S)
        assert not is_attached(market)


async def test_a_node_that_is_gone_is_revived_by_itself_alone(autojump_clock: MockClock) -> None:
    """Others go on to repeat its last offer."""
    async with open_small_market(Script.ANSWER) as market:
        node, book = market.nodes[0], market.coordinator.market.book
        last = node.offer(sequence=1).raw
        await node.call(Method.ATTACH, AttachAsk(last, node.load()), AttachReply)
        market.network.kill(node.key.peer_id)
        for _ in range(60):
            await trio.sleep(10)
            verdict = book.accept(last, now_ms=market.clock.now_ms(), via=market.buyer.peer_id)
            assert not verdict.is_news
            entry = book.get(node.key.peer_id)
            assert entry is None or not entry.is_attached
        assert book.get(node.key.peer_id) is None


def _load_of(node: ScriptedNode, incarnation_ms: int) -> LoadReport:
    return replace(node.load(), incarnation_ms=incarnation_ms)


async def test_a_node_learns_how_it_stands(autojump_clock: MockClock) -> None:
    async with open_small_market(Script.ANSWER) as market:
        node = market.nodes[0]
        for _ in range(3):
            await market.buy()
        reply = await node.call(Method.STANDING, StandingAsk(), StandingReply)
        assert reply.is_known
        assert reply.is_dialable
        (model,) = reply.models
        assert (model.jobs, model.chosen) == (3, 3)
        assert reply.health == "closed"
        await node.call(Method.STANDING, StandingAsk(), StandingReply)
        with pytest.raises(RemoteProtocolError) as refused:
            await node.call(Method.STANDING, StandingAsk(), StandingReply)
        assert refused.value.code is Code.RATE_LIMITED
