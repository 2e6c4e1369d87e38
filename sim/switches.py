"""How a world's parties are broken and mended: one context per fault, open as long as it lasts."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from sim.faults import Fault, FaultKind, Switches
from sim.options import Faults
from sim.parties import Parties
from sim.sim_node import SimNode
from sim.trace import Trace


def make_switches(parties: Parties, faults: Faults, trace: Trace) -> Switches:
    def bound(
        switch: Callable[[Parties, Fault], AbstractContextManager[str]],
    ) -> Callable[[Fault], AbstractContextManager[str]]:
        return partial(switch, parties)

    return {
        FaultKind.KILL: bound(_killed),
        FaultKind.COORDINATOR_KILL: bound(_coordinator_killed),
        FaultKind.PARTITION: bound(_partitioned),
        FaultKind.FAR_LINK: partial(_far_away, parties, faults.far_link_latency_s),
        FaultKind.SLOW_NODE: bound(_slowed),
        FaultKind.REFUSAL: bound(_refusing),
        FaultKind.WORKER_CRASH: partial(_crashed, parties, trace),
    }


@contextmanager
def _killed(parties: Parties, fault: Fault) -> Iterator[str]:
    node = _busiest(parties, fault)
    node.host.kill()
    yield node.name
    node.host.revive()


@contextmanager
def _coordinator_killed(parties: Parties, fault: Fault) -> Iterator[str]:
    host = parties.coordinator.host
    host.kill()
    yield host.name
    host.revive()


@contextmanager
def _partitioned(parties: Parties, fault: Fault) -> Iterator[str]:
    nodes = [(parties.nodes[n].key.peer_id, parties.nodes[n].name) for n in fault.nodes]
    buyers = [(parties.buyers[n].key.peer_id, parties.buyers[n].name) for n in fault.clients]
    minority = [*nodes, *buyers]
    parties.network.partition([peer for peer, _ in minority])
    yield ",".join(name for _, name in minority)
    parties.network.heal()


@contextmanager
def _far_away(parties: Parties, extra_latency_s: float, fault: Fault) -> Iterator[str]:
    node = parties.nodes[fault.nodes[0]]
    parties.set_links(of=node.key.peer_id, extra_latency_s=extra_latency_s)
    yield node.name
    parties.set_links(of=node.key.peer_id)


@contextmanager
def _slowed(parties: Parties, fault: Fault) -> Iterator[str]:
    node = parties.nodes[fault.nodes[0]]
    node.ailments.slowdowns += 1
    yield node.name
    node.ailments.slowdowns -= 1


@contextmanager
def _refusing(parties: Parties, fault: Fault) -> Iterator[str]:
    node = parties.nodes[fault.nodes[0]]
    node.ailments.refusals += 1
    yield node.name
    node.ailments.refusals -= 1


@contextmanager
def _crashed(parties: Parties, trace: Trace, fault: Fault) -> Iterator[str]:
    """The workers come back by themselves; a node that is down has none."""
    node = _busiest(parties, fault)
    for worker in node.workers:
        jobs = worker.crash(restart_s=fault.lasts_s)
        trace.add(node.name, "worker_crashed", jobs=jobs)
    yield node.name


def _busiest(parties: Parties, fault: Fault) -> SimNode:
    """Of the nodes that are up the one with most jobs; of equals, the first from `fault` on."""
    first = fault.nodes[0]
    return max((*parties.nodes[first:], *parties.nodes[:first]), key=lambda node: node.live_jobs)
