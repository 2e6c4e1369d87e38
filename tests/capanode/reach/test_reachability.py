"""What a node makes of what its coordinators' dials came to."""

import random

import pytest
import trio
from trio.testing import MockClock

from capanode.reach import Reachability, ReachState
from capanode.reach.advice import advise, is_carrier_nat
from capanode.reach.reachability import LOOK_AGAIN_S
from protocol.net.memory import MemoryNetwork
from protocol.reach import DialBackReply, Dialled, DialResult
from tests.protocol.makers import COORDINATOR, NODE, STRANGER

FIRST, SECOND = COORDINATOR.peer_id, STRANGER.peer_id
LISTENING = (f"/ip4/192.168.1.7/tcp/4101/p2p/{NODE.peer_id}",)


class Node:
    """A node's reachability, and how often its offer had to change."""

    def __init__(self, *, by_hand: bool) -> None:
        self.transport = MemoryNetwork(random.Random(1)).transport(NODE)
        self.changes = 0
        self.reach = Reachability(self.transport, by_hand=by_hand, on_change=self._count)

    def _count(self) -> None:
        self.changes += 1

    @property
    def address(self) -> str:
        return self.transport.addresses[0]

    def hear(self, outcome: Dialled, coordinator: str = FIRST) -> None:
        results = (DialResult(self.address, outcome),)
        self.reach.note(type(FIRST)(coordinator), DialBackReply("memory", results, 2))


@pytest.fixture(params=[False])
async def node(request: pytest.FixtureRequest, nursery: trio.Nursery) -> Node:
    node = Node(by_hand=request.param)
    await nursery.start(node.transport.run)
    return node


BY_HAND = pytest.mark.parametrize("node", [True], indirect=True)


async def test_before_any_word_the_node_offers_what_it_believes(node: Node) -> None:
    assert node.reach.offered() == (node.address,)
    assert node.reach.state is ReachState.UNKNOWN
    assert not node.reach.has_word_of(FIRST)


async def test_one_coordinator_that_reaches_it_is_enough(node: Node) -> None:
    node.hear(Dialled.TIMED_OUT)
    assert node.reach.state is ReachState.UNREACHABLE
    assert node.reach.offered() == ()
    node.hear(Dialled.REACHED, SECOND)
    assert node.reach.status().state is ReachState.DIRECT
    assert node.reach.offered() == (node.address,)
    node.hear(Dialled.REFUSED, SECOND)
    assert node.reach.offered() == ()
    assert node.changes == 3


async def test_beside_an_old_coordinator_the_node_offers_what_it_believes(node: Node) -> None:
    node.hear(Dialled.TIMED_OUT)
    node.reach.note_unable(SECOND)
    assert node.reach.offered() == (node.address,)


async def test_the_same_word_again_changes_nothing(node: Node) -> None:
    for _ in range(3):
        node.hear(Dialled.REACHED)
    assert node.changes == 1


@BY_HAND
async def test_what_the_operator_wrote_down_is_dropped_only_where_it_was_seen_to_fail(
    node: Node,
) -> None:
    for outcome, is_offered in (
        (Dialled.FORBIDDEN, True),
        (Dialled.UNPROVEN, True),
        (Dialled.REACHED, True),
        (Dialled.TIMED_OUT, False),
        (Dialled.REFUSED, False),
        (Dialled.OTHER_PEER, False),
    ):
        node.hear(outcome)
        assert bool(node.reach.offered()) == is_offered, outcome


async def test_an_address_that_was_not_proven_is_asked_about_once_more(node: Node) -> None:
    assert node.reach.open_questions(FIRST) == (node.address,)
    node.hear(Dialled.UNPROVEN)
    assert node.reach.open_questions(FIRST) == (node.address,)
    node.hear(Dialled.TIMED_OUT)
    assert node.reach.open_questions(FIRST) == ()


async def test_a_second_answer_adds_to_the_first(node: Node) -> None:
    node.hear(Dialled.REACHED)
    more = DialBackReply("memory", (DialResult("elsewhere", Dialled.REFUSED),))
    node.reach.note(FIRST, more, is_more=True)
    assert node.reach.offered() == (node.address,)
    assert len(node.reach.status().tried) == 2


async def test_an_address_that_is_gone_is_offered_no_more_and_a_new_one_when_it_was_reached(
    node: Node,
) -> None:
    node.hear(Dialled.REACHED)
    node.transport.move(77)
    assert node.transport.refresh_addresses()
    node.reach.network_changed()
    assert node.reach.offered() == ()
    assert node.reach.open_questions(FIRST) == (node.address,)
    node.hear(Dialled.REACHED)
    assert node.reach.offered() == (node.address,)


async def test_a_mapped_port_makes_coordinators_look_again(
    node: Node, autojump_clock: MockClock
) -> None:
    node.hear(Dialled.TIMED_OUT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.reach.wait_look_again)
        await trio.testing.wait_all_tasks_blocked()
        started_at = trio.current_time()
        node.reach.note_mapping(("/ip4/8.8.8.8/tcp/4101",), "upnp")
    assert trio.current_time() == started_at
    assert any("8.8.8.8" in address for address in node.reach.candidates())
    await node.reach.wait_look_again()
    assert trio.current_time() - started_at == pytest.approx(LOOK_AGAIN_S)


async def test_the_status_tells_what_to_do(node: Node) -> None:
    node.hear(Dialled.TIMED_OUT)
    status = node.reach.status()
    assert status.observed_hosts == ("memory",)
    assert status.failed_buyers == 2
    node.hear(Dialled.REACHED)
    assert node.reach.status().advice == ()


def words(outcome: Dialled, *, by_hand: bool = False, virtual: str = "") -> str:
    results = [DialResult(LISTENING[0], outcome)]
    return "\n".join(advise(results, LISTENING, by_hand=by_hand, virtual=virtual))


def test_advice_names_port_host_and_place() -> None:
    plain = words(Dialled.TIMED_OUT)
    assert "forward TCP port 4101" in plain
    assert "192.168.1.7" in plain
    assert "firewall" in plain
    assert "`announce` names" in words(Dialled.REFUSED, by_hand=True)
    assert "another node answers" in words(Dialled.OTHER_PEER)
    assert "WSL2" in words(Dialled.TIMED_OUT, virtual="wsl")
    assert "docker run -p" in words(Dialled.TIMED_OUT, virtual="container")


def test_a_carriers_router_is_told_from_ones_own() -> None:
    assert is_carrier_nat("100.64.0.1")
    assert not is_carrier_nat("192.168.1.1")
    assert not is_carrier_nat("nonsense")
