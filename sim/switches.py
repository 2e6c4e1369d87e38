"""How a world's parties are broken and mended: one context per fault, open as long as it lasts."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial

from sim.disk import CutPlan, CutPoint
from sim.faults import Fault, FaultKind, Switches
from sim.host import Host
from sim.machine_clock import MachineClock
from sim.options import Faults
from sim.parties import Parties
from sim.sim_node import SimNode
from sim.trace import Trace

# A power cut hits one of so many writes that come next: a burst of jobs, or a round of receipts.
_WRITES_LOOKED_AT = 8

# By how much a clock is set wrong: more than clocks may differ, and more than a job may take.
_JUMPS_MS = (-10_800_000, -600_000, -90_000, 90_000, 600_000, 10_800_000)


def make_switches(parties: Parties, faults: Faults, trace: Trace) -> Switches:
    def bound(
        switch: Callable[[Parties, Fault], AbstractContextManager[str]],
    ) -> Callable[[Fault], AbstractContextManager[str]]:
        return partial(switch, parties)

    return {
        FaultKind.KILL: bound(_killed),
        FaultKind.COORDINATOR_KILL: partial(_coordinator_killed, parties, trace),
        FaultKind.RESTART: partial(_coordinator_killed, parties, trace),
        FaultKind.PAIRED_KILL: partial(_both_killed, parties, trace),
        FaultKind.POWER_CUT: partial(_power_cut, parties, trace),
        FaultKind.NODE_POWER_CUT: partial(_node_power_cut, parties, trace),
        FaultKind.ONE_WAY_CUT: bound(_unheard),
        FaultKind.CLOCK_JUMP: bound(_clock_set_wrong),
        FaultKind.BAD_NODE: partial(_bad_node, parties, trace),
        FaultKind.BAD_CLIENT: bound(_bad_client),
        FaultKind.DISK_FULL: partial(_disk_full, parties, trace),
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
def _coordinator_killed(parties: Parties, trace: Trace, fault: Fault) -> Iterator[str]:
    coordinator = parties.coordinator
    trace.add(coordinator.host.name, f"killed_while_{coordinator.state}")
    coordinator.kill()
    yield coordinator.host.name
    coordinator.host.revive()


@contextmanager
def _both_killed(parties: Parties, trace: Trace, fault: Fault) -> Iterator[str]:
    with _coordinator_killed(parties, trace, fault) as one, _killed(parties, fault) as other:
        yield f"{one},{other}"


@contextmanager
def _power_cut(parties: Parties, trace: Trace, fault: Fault) -> Iterator[str]:
    """In the middle of one of the next writes; if there is none, at no time."""
    coordinator = parties.coordinator
    _plan_cut(coordinator.host, coordinator.disk.cuts, trace, fault)
    yield coordinator.host.name
    coordinator.disk.cuts.forget()
    coordinator.host.revive()


@contextmanager
def _node_power_cut(parties: Parties, trace: Trace, fault: Fault) -> Iterator[str]:
    node = _busiest(parties, fault)
    _plan_cut(node.host, node.cuts, trace, fault)
    yield node.name
    node.cuts.forget()
    node.host.revive()


def _plan_cut(host: Host, cuts: CutPlan, trace: Trace, fault: Fault) -> None:
    after, which = divmod(fault.variant % (_WRITES_LOOKED_AT * len(CutPoint)), len(CutPoint))
    point = tuple(CutPoint)[which]

    def cut() -> None:
        host.kill()
        trace.add(host.name, "power_cut", point=point)

    cuts.plan(after, point, cut)


@contextmanager
def _unheard(parties: Parties, fault: Fault) -> Iterator[str]:
    """Between a node and the coordinator, or a node and a client, in one of the two directions."""
    node = parties.nodes[fault.nodes[0]]
    others = [(buyer.key.peer_id, buyer.name) for buyer in parties.buyers]
    coordinator = parties.coordinator
    others += len(others) * [(coordinator.key.peer_id, coordinator.host.name)]
    which, is_node_mute = divmod(fault.variant % (2 * len(others)), 2)
    one, two = (node.key.peer_id, node.name), others[which]
    (source, speaker), (target, listener) = (one, two) if is_node_mute else (two, one)
    parties.network.cut(source, target)
    yield f"{speaker}>{listener}"
    parties.network.mend(source, target)


@contextmanager
def _clock_set_wrong(parties: Parties, fault: Fault) -> Iterator[str]:
    """Every other time it is the coordinator's."""
    machines: list[tuple[str, MachineClock]] = [
        *((node.name, node.clock) for node in parties.nodes),
        *((buyer.name, buyer.clock) for buyer in parties.buyers),
    ]
    coordinator = parties.coordinator
    assert coordinator.clock is not None, "a world's coordinator has a clock of its own"
    machines += len(machines) * [(coordinator.host.name, coordinator.clock)]
    which, size = divmod(fault.variant % (len(machines) * len(_JUMPS_MS)), len(_JUMPS_MS))
    name, clock = machines[which]
    clock.jump_ms = _JUMPS_MS[size]
    yield name
    clock.jump_ms = 0


@contextmanager
def _bad_node(parties: Parties, trace: Trace, fault: Fault) -> Iterator[str]:
    node = parties.bad_nodes[fault.nodes[0]]
    node.is_active = True
    node.host.revive()
    yield node.name
    node.is_active = False
    node.host.switch_off()
    leases = sum(map(len, parties.auditor.jobs_at(node.key.peer_id).values()))
    if leases:
        trace.add(node.name, "bad_node_was_leased", vice=node.vice, leases=leases)


@contextmanager
def _bad_client(parties: Parties, fault: Fault) -> Iterator[str]:
    client = parties.bad_clients[fault.clients[0]]
    client.is_active = True
    yield client.name
    client.is_active = False


@contextmanager
def _disk_full(parties: Parties, trace: Trace, fault: Fault) -> Iterator[str]:
    name, disk = parties.coordinator.host.name, parties.coordinator.disk
    before = disk.refusals
    disk.is_full = True
    yield name
    disk.is_full = False
    if disk.refusals > before:
        trace.add(name, "disk_was_full", refused=disk.refusals - before)


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
