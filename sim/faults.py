"""What goes wrong in a world, and when: planned from the seed, then carried out on a schedule.

Every fault has a beginning and an end inside the chaos phase, so that the quiet phase starts with a
whole network; whether the market recovers from it is what the world is for.
"""

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum

import trio

from sim.options import Faults, WorldOptions
from sim.trace import Trace

_RESTARTS_MAX = 4
# A coordinator with few jobs in its books is up again after about this time.
_STARTS_WITHIN_S = 0.008


class FaultKind(StrEnum):
    KILL = "kill"  # the node's process dies and is started again
    COORDINATOR_KILL = "coordinator_kill"  # the same happens to the coordinator
    PAIRED_KILL = "paired_kill"  # coordinator and a node die at the same moment
    RESTART = "restart"  # the coordinator dies again while it starts
    NODE_POWER_CUT = "node_power_cut"  # a node's machine goes off in the middle of a write
    ONE_WAY_CUT = "one_way_cut"  # what one party says does not reach another
    CLOCK_JUMP = "clock_jump"  # a machine's wall clock is set wrong by minutes or hours
    BAD_NODE = "bad_node"  # a node that costs the market its users
    BAD_CLIENT = "bad_client"  # a client that costs it work, seats or money
    POWER_CUT = "power_cut"  # the coordinator's machine goes off in the middle of a write
    DISK_FULL = "disk_full"  # the coordinator's disk takes nothing more
    PARTITION = "partition"  # some parties reach only each other
    FAR_LINK = "far_link"  # one node's connections become slow
    SLOW_NODE = "slow_node"  # its machine has something else to do
    REFUSAL = "refusal"  # it takes leases and refuses every job
    WORKER_CRASH = "worker_crash"  # the model's process dies, the node lives


@dataclass(frozen=True, slots=True)
class Fault:
    """`nodes` are numbers of nodes; of a partition, all that are on the smaller side, which has
    clients too if `clients` names some. Processes die where it hurts: at the busiest node, or at
    this one if all are idle. Bad nodes and bad clients have numbers of their own. `variant` is a
    large number that decides what else is to be decided."""

    kind: FaultKind
    at_s: float
    lasts_s: float
    nodes: tuple[int, ...]
    clients: tuple[int, ...] = ()
    variant: int = 0


# What a world does for each kind: the fault lasts as long as the context is open, which says whom
# it hit.
Switches = dict[FaultKind, Callable[[Fault], AbstractContextManager[str]]]


def plan_faults(options: WorldOptions, rng: random.Random) -> tuple[Fault, ...]:
    """The faults of the chaos phase, in order of time."""
    seed = rng.getrandbits(64)
    planned = [
        *_plan_partitions(options, _rng_of(seed, FaultKind.PARTITION)),
        *_plan_restarts(options, _rng_of(seed, FaultKind.RESTART)),
        *_plan_bad_parties(options, _rng_of(seed, FaultKind.BAD_NODE)),
        *_plan_others(options, seed),
    ]
    return tuple(sorted(planned, key=lambda fault: fault.at_s))


async def carry_out(faults: Sequence[Fault], switches: Switches, trace: Trace) -> None:
    """Begin and end every fault in its time, from now on. Returns when the last one is over."""
    started_at = trio.current_time()

    async def carry(fault: Fault) -> None:
        await trio.sleep_until(started_at + fault.at_s)
        with switches[fault.kind](fault) as victims:
            trace.add("world", "fault_began", kind=fault.kind, at=victims)
            await trio.sleep(fault.lasts_s)
        trace.add("world", "fault_ended", kind=fault.kind, at=victims)

    async with trio.open_nursery() as nursery:
        for fault in faults:
            nursery.start_soon(carry, fault)


def _plan_partitions(options: WorldOptions, rng: random.Random) -> Iterable[Fault]:
    """One after the other: a network has one partition at a time."""
    faults = options.faults
    if not faults.partitions:
        return
    window_s = options.chaos_s / faults.partitions
    for number in range(faults.partitions):
        lasts_s = min(rng.uniform(*faults.partition_lasts_s), 0.9 * window_s)
        at_s = number * window_s + rng.uniform(0.0, window_s - lasts_s)
        nodes = rng.sample(range(options.nodes), rng.randint(1, 2))
        clients = [client for client in range(options.clients) if rng.random() < 0.25]
        yield Fault(FaultKind.PARTITION, at_s, lasts_s, tuple(sorted(nodes)), tuple(clients))


def _plan_restarts(options: WorldOptions, rng: random.Random) -> Iterable[Fault]:
    """A coordinator that is started, and killed before it has read its books, some times over."""
    for _ in range(options.faults.restarts):
        at_s = rng.uniform(0.0, options.chaos_s - _RESTARTS_MAX)
        for _ in range(rng.randint(2, _RESTARTS_MAX)):
            lasts_s = rng.uniform(0.1, 0.9)
            yield Fault(FaultKind.RESTART, at_s, lasts_s, (0,))
            at_s += lasts_s + rng.uniform(0.0, _STARTS_WITHIN_S)


def _plan_bad_parties(options: WorldOptions, rng: random.Random) -> Iterable[Fault]:
    """They come at some time, and leave when the chaos ends."""
    for number in range(len(options.faults.bad_nodes)):
        at_s = rng.uniform(0.0, options.chaos_s / 2)
        yield Fault(FaultKind.BAD_NODE, at_s, options.chaos_s - at_s, (number,))
    for number in range(len(options.faults.bad_clients)):
        at_s = rng.uniform(0.0, options.chaos_s / 2)
        yield Fault(FaultKind.BAD_CLIENT, at_s, options.chaos_s - at_s, (), (number,))


def _plan_others(options: WorldOptions, seed: int) -> Iterator[Fault]:
    """Faults that may overlap as they like."""
    for kind, count, lasting_s in _independent(options.faults):
        rng = _rng_of(seed, kind)
        for _ in range(count):
            lasts_s = rng.uniform(*lasting_s)
            node = rng.randrange(options.nodes)
            at_s = _begin(options, lasts_s, rng)
            yield Fault(kind, at_s, lasts_s, (node,), variant=rng.getrandbits(32))


def _independent(faults: Faults) -> tuple[tuple[FaultKind, int, tuple[float, float]], ...]:
    return (
        (FaultKind.KILL, faults.kills, faults.kill_lasts_s),
        (FaultKind.COORDINATOR_KILL, faults.coordinator_kills, faults.coordinator_kill_lasts_s),
        (FaultKind.POWER_CUT, faults.power_cuts, faults.coordinator_kill_lasts_s),
        (FaultKind.PAIRED_KILL, faults.paired_kills, faults.coordinator_kill_lasts_s),
        (FaultKind.NODE_POWER_CUT, faults.node_power_cuts, faults.kill_lasts_s),
        (FaultKind.ONE_WAY_CUT, faults.one_way_cuts, faults.one_way_cut_lasts_s),
        (FaultKind.CLOCK_JUMP, faults.clock_jumps, faults.clock_jump_lasts_s),
        (FaultKind.DISK_FULL, faults.disk_fulls, faults.disk_full_lasts_s),
        (FaultKind.FAR_LINK, faults.far_links, faults.far_link_lasts_s),
        (FaultKind.SLOW_NODE, faults.slow_nodes, faults.slow_lasts_s),
        (FaultKind.REFUSAL, faults.refusals, faults.refusal_lasts_s),
        (FaultKind.WORKER_CRASH, faults.worker_crashes, faults.worker_restart_s),
    )


def _rng_of(seed: int, kind: FaultKind) -> random.Random:
    """One for each kind, so that a new kind does not move the others."""
    return random.Random(f"{seed} {kind}")


def _begin(options: WorldOptions, lasts_s: float, rng: random.Random) -> float:
    """Early enough to be over when the chaos phase is."""
    return rng.uniform(0.0, max(0.0, options.chaos_s - lasts_s))
