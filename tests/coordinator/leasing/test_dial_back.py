"""Dialling nodes back: what is seen, whom it cannot be aimed at, and what follows for matching."""

from dataclasses import dataclass, field
from typing import cast

import pytest
import trio
from trio.testing import MockClock

from coordinator.buyer.errors import JobFailed
from coordinator.leasing.dial_back import OF_A_NODE, DialBack
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId
from protocol.net.errors import AddressForbidden, ConnectFailed, NetError, NetTimeout, PeerMismatch
from protocol.net.transport import Transport
from protocol.reach import PADDING_BYTES, DialBackAsk, DialBackReply, Dialled
from protocol.services import LoadAck, Method, Notice
from tests.coordinator.small_market import Script, ScriptedNode, SmallMarket, open_small_market
from tests.protocol.makers import NODE, STRANGER

SEEN = "203.0.113.7"
PAID = bytes(4 * PADDING_BYTES)
# Public addresses that no host has.
ELSEWHERE = "8.8.8.8"


@dataclass
class Probes:
    """Stands for a transport: `answers` by place, and what was dialled."""

    answers: dict[str, NetError] = field(default_factory=dict)
    observed: str = SEEN
    dialled: list[str] = field(default_factory=list)

    def observed_host(self, peer: PeerId) -> str:
        return self.observed

    async def probe(self, address: str, *, timeout_s: float) -> None:
        await trio.lowlevel.checkpoint()
        place = address.partition("/p2p/")[0]
        self.dialled.append(place)
        if place in self.answers:
            raise self.answers[place]


def place_of(host: str, port: int = 4101) -> str:
    return f"/ip{6 if ':' in host else 4}/{host}/tcp/{port}"


async def outcomes(probes: Probes, *places: str, padding: bytes = b"") -> list[Dialled]:
    dial_back = DialBack(cast(Transport, probes))
    ask = DialBackAsk(tuple(f"{place}/p2p/{NODE.peer_id}" for place in places), padding)
    return [result.outcome for result in await dial_back.answer(NODE.peer_id, ask)]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, Dialled.REACHED),
        (ConnectFailed("refused"), Dialled.REFUSED),
        (NetTimeout("silence"), Dialled.TIMED_OUT),
        (PeerMismatch("another"), Dialled.OTHER_PEER),
        (AddressForbidden("private"), Dialled.FORBIDDEN),
    ],
)
async def test_an_outcome_says_what_was_seen(error: NetError | None, outcome: Dialled) -> None:
    probes = Probes({place_of(SEEN): error} if error is not None else {})
    assert await outcomes(probes, place_of(SEEN)) == [outcome]


@pytest.mark.parametrize(
    ("host", "padding", "outcome"),
    [
        (SEEN, b"", Dialled.REACHED),
        ("203.0.113.99", b"", Dialled.REACHED),  # a neighbour
        (ELSEWHERE, b"", Dialled.UNPROVEN),
        (ELSEWHERE, bytes(PADDING_BYTES - 1), Dialled.UNPROVEN),
        (ELSEWHERE, PAID, Dialled.REACHED),
        ("2a00::7", PAID, Dialled.REACHED),
        ("127.0.0.1", PAID, Dialled.FORBIDDEN),
        ("::1", PAID, Dialled.FORBIDDEN),
        ("192.168.1.1", PAID, Dialled.FORBIDDEN),
        ("169.254.169.254", PAID, Dialled.FORBIDDEN),
        ("100.64.0.1", PAID, Dialled.FORBIDDEN),
        ("fe80::1", PAID, Dialled.FORBIDDEN),
        ("not-an-ip", PAID, Dialled.FORBIDDEN),
    ],
)
async def test_a_node_is_dialled_where_it_is_or_where_asking_cost_more_than_the_dial(
    host: str, padding: bytes, outcome: Dialled
) -> None:
    probes = Probes()
    assert await outcomes(probes, place_of(host), padding=padding) == [outcome]
    assert bool(probes.dialled) == (outcome is Dialled.REACHED)


async def test_padding_pays_for_as_many_addresses_as_it_is_long() -> None:
    probes = Probes()
    places = [place_of(host) for host in (ELSEWHERE, "1.1.1.1", "9.9.9.9")]
    found = await outcomes(probes, *places, padding=bytes(2 * PADDING_BYTES))
    assert found == [Dialled.REACHED, Dialled.REACHED, Dialled.UNPROVEN]


async def test_a_block_of_strangers_is_dialled_seldom_however_many_nodes_ask(
    autojump_clock: MockClock,
) -> None:
    probes = Probes()
    dial_back = DialBack(cast(Transport, probes))
    for number in range(40):
        address = f"{place_of(ELSEWHERE, 1 + number)}/p2p/{NODE.peer_id}"
        asker = NODE.peer_id
        await dial_back.answer(asker, DialBackAsk((address,), PAID))
        await trio.sleep(2)  # The asker's own rate.
    assert len(probes.dialled) <= 8 + 40 * 2 * 0.2 + 1


async def test_addresses_of_others_circuits_and_junk_are_not_dialled() -> None:
    probes = Probes()
    dial_back = DialBack(cast(Transport, probes))
    bad = (
        f"{place_of(SEEN)}/p2p/{STRANGER.peer_id}",
        f"{place_of(SEEN)}/p2p/{STRANGER.peer_id}/p2p-circuit/p2p/{NODE.peer_id}",
        place_of(SEEN),
        "",
    )
    results = await dial_back.answer(NODE.peer_id, DialBackAsk(bad, PAID))
    assert [result.outcome for result in results] == [Dialled.FORBIDDEN] * len(bad)
    assert not probes.dialled


async def test_a_node_that_asks_too_often_waits(autojump_clock: MockClock) -> None:
    dial_back = DialBack(cast(Transport, Probes()))
    ask = DialBackAsk((f"{place_of(SEEN)}/p2p/{NODE.peer_id}",))
    for _ in range(OF_A_NODE.burst):
        await dial_back.answer(NODE.peer_id, ask)
    with pytest.raises(RemoteProtocolError) as refused:
        await dial_back.answer(NODE.peer_id, ask)
    assert refused.value.code is Code.RATE_LIMITED
    await trio.sleep((refused.value.retry_after_ms or 0) / 1_000)
    await dial_back.answer(NODE.peer_id, ask)


# In a market. A client over the network has to dial; the gateway uses the node's own connection.

HOLE = 98


def hole_of(node: ScriptedNode) -> str:
    return f"/memory/{HOLE}/p2p/{node.key.peer_id}"


def port_of(node: ScriptedNode) -> int:
    return int(node.transport.addresses[0].split("/")[2])


def lists_a_hole(nodes: list[ScriptedNode]) -> None:
    """The first node announces a port that is not forwarded."""
    nodes[0].transport.network.swallow(HOLE)
    nodes[0].listed = (hole_of(nodes[0]),)


async def looked_at(market: SmallMarket) -> None:
    """The coordinator has dialled those that attached."""
    await trio.sleep(5)


def is_dialable(market: SmallMarket, number: int = 0) -> bool:
    entry = market.coordinator.market.book.get(market.nodes[number].key.peer_id)
    assert entry is not None
    return entry.is_dialable


async def report(node: ScriptedNode) -> tuple[Notice, ...]:
    return (await node.call(Method.LOAD, node.load(), LoadAck)).notices


async def test_a_port_that_is_not_forwarded_costs_no_buyer_anything(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER, Script.ANSWER, adjust=lists_a_hole) as market:
        await looked_at(market)
        for _ in range(6):
            started_at = trio.current_time()
            await market.buy()
            assert trio.current_time() - started_at < 1
        assert market.nodes[0].jobs_opened == 0
        assert Notice.DIAL_BACK in await report(market.nodes[0])
        assert Notice.DIAL_BACK not in await report(market.nodes[0])
        assert await report(market.nodes[1]) == ()


async def test_the_gateway_of_the_coordinator_still_uses_such_a_node(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER, Script.ANSWER, adjust=lists_a_hole) as market:
        await looked_at(market)
        assert not is_dialable(market)
        own = market.coordinator.client
        for _ in range(12):
            async with own.buy(market.spec(), market.buyer) as stream:
                assert [chunk async for chunk in stream]
        assert market.nodes[0].jobs_opened


async def test_a_node_whose_port_is_forwarded_now_gets_jobs_again(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER, Script.ANSWER, adjust=lists_a_hole) as market:
        await looked_at(market)
        node = market.nodes[0]
        assert not is_dialable(market)
        node.listed = None
        reply = await node.call(
            Method.DIAL_BACK, DialBackAsk(node.transport.addresses), DialBackReply
        )
        assert [result.outcome for result in reply.results] == [Dialled.REACHED]
        assert reply.observed_host == "memory"
        node.transport.network.answer(HOLE)
        await node.call(Method.DIAL_BACK, DialBackAsk((hole_of(node),)), DialBackReply)
        # What listens at the other port is nothing.
        assert not is_dialable(market)


async def test_a_coordinator_that_reached_no_node_blames_itself(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER, adjust=lists_a_hole) as market:
        await looked_at(market)
        assert is_dialable(market)


async def test_what_a_buyer_says_makes_the_coordinator_look_and_no_more(
    autojump_clock: MockClock,
) -> None:
    """A liar removes no node; a node whose port was closed meanwhile is found out."""
    async with open_small_market(Script.ANSWER, Script.ANSWER) as market:
        await looked_at(market)
        node = market.nodes[0]
        rules = market.coordinator.market
        rules.note_unreached(node.key.peer_id, market.buyer.peer_id)
        await trio.sleep(5)
        assert is_dialable(market)
        assert Notice.DIAL_BACK in await report(node)
        reply = await node.call(
            Method.DIAL_BACK, DialBackAsk(node.transport.addresses), DialBackReply
        )
        assert reply.failed_buyers == 1
        market.network.swallow(port_of(node))
        await trio.sleep(6)
        rules.note_unreached(node.key.peer_id, market.buyer.peer_id)
        await trio.sleep(10)
        assert not is_dialable(market)


async def test_a_buyer_that_cannot_dial_tells_by_its_word_on_the_lease(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER, adjust=lists_a_hole) as market:
        with pytest.raises(JobFailed):
            await market.buy()
        await trio.sleep(10)
        rules, node = market.coordinator.market, market.nodes[0].key.peer_id
        assert rules.unreached.buyers(node, now_ms=market.clock.now_ms()) == 1


async def close_its_port(market: SmallMarket) -> ScriptedNode:
    """Of a node that was reached before; a buyer tells of it."""
    await looked_at(market)
    node = market.nodes[0]
    market.network.swallow(port_of(node))
    await trio.sleep(6)  # Until a complaint counts again.
    market.coordinator.market.note_unreached(node.key.peer_id, market.buyer.peer_id)
    return node


async def test_one_dial_that_fails_takes_no_buyers_from_a_node_that_was_reached_before(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER, Script.ANSWER) as market:
        node = await close_its_port(market)
        await trio.sleep(5)  # A second until it is looked at, and three for the dial.
        assert is_dialable(market)
        market.network.answer(port_of(node))
        await trio.sleep(60)
        assert is_dialable(market)


async def test_a_node_that_could_not_be_dialled_is_soon_dialled_again(
    autojump_clock: MockClock,
) -> None:
    async with open_small_market(Script.ANSWER, Script.ANSWER) as market:
        node = await close_its_port(market)
        await trio.sleep(10)
        assert not is_dialable(market)
        market.network.answer(port_of(node))
        await trio.sleep(10)
        assert is_dialable(market)
