"""Everything that a seed decides before a world begins: machines, network, demand, and what fails.

The vocabulary of faults is in one place, so that a world can be read from its options: they are
written into the trace first.
"""

import random
from dataclasses import dataclass, field, replace

from coordinator.bounds import DEFAULT_BOUNDS, MarketBounds
from coordinator.buyer.ahead.pool import LEASES_PER_CLASS
from coordinator.leasing.clients import WindowRange
from protocol.limits import CLOCK_SKEW_MAX_MS
from protocol.money import NANO_PER_CREDIT
from protocol.net.memory_wire import Conditions
from protocol.pricing import PriceSheet
from sim.vices import Habit, Vice

_CLIENTS = 3
# Of all worlds.
_NO_POOLS_SHARE = 0.5

# Both sides of the window are used, and two honest clocks may stand at its two ends.
SKEW_MS_MAX = CLOCK_SKEW_MAX_MS // 2


@dataclass(frozen=True, slots=True)
class SimMachine:
    """A kind of node, calibrated: one stream gets `decode_tps`, and every further stream of a batch
    makes a step longer by `batch_slowdown`. Prices are per million tokens in and out."""

    name: str
    prefill_tps: int
    decode_tps: int
    batch_slowdown: float
    slots: int
    queue_max: int
    price: PriceSheet


def _price(input_credits: float, output_credits: float) -> PriceSheet:
    return PriceSheet(
        input_nano_per_mtok=round(input_credits * NANO_PER_CREDIT),
        output_nano_per_mtok=round(output_credits * NANO_PER_CREDIT),
    )


# SmolLM2 on two cores measured 41 tokens/s alone and 350 in a batch of 32 (DESIGN, section 10);
# the others keep the published ratios between such a machine and a consumer or a server card.
# Slots are few, so that forty jobs are enough to fill queues.
MACHINES = (
    SimMachine("laptop", 400, 41, 0.09, 2, 2, _price(0.02, 0.06)),
    SimMachine("desktop", 3_000, 90, 0.04, 3, 2, _price(0.05, 0.12)),
    SimMachine("server", 9_000, 160, 0.02, 4, 4, _price(0.11, 0.31)),
)


@dataclass(frozen=True, slots=True)
class Network:
    """How far parties are from each other: each pair draws a latency from this range."""

    latency_s: tuple[float, float] = (0.001, 0.08)
    jitter_s: float = 0.01
    loss: float = 0.01
    gossip_delay_s: float = 0.5
    gossip_duplicates: float = 0.2

    def draw(self, rng: random.Random) -> Conditions:
        """The conditions between two parties."""
        return Conditions(
            latency_s=round(rng.uniform(*self.latency_s), 4),
            jitter_s=self.jitter_s,
            loss=self.loss,
            gossip_delay_s=self.gossip_delay_s,
            gossip_duplicates=self.gossip_duplicates,
        )


@dataclass(frozen=True, slots=True)
class Faults:
    """How often each thing fails in the chaos phase, and for how long (seconds, from, to)."""

    kills: int = 1
    kill_lasts_s: tuple[float, float] = (4.0, 15.0)
    coordinator_kills: int = 1
    coordinator_kill_lasts_s: tuple[float, float] = (0.5, 6.0)
    # The coordinator and the busiest node at once; and the coordinator again while it starts.
    paired_kills: int = 1
    restarts: int = 1
    # Power that fails in the middle of a write: the coordinator's, a node's.
    power_cuts: int = 1
    node_power_cuts: int = 1
    disk_fulls: int = 1
    disk_full_lasts_s: tuple[float, float] = (2.0, 6.0)
    partitions: int = 1
    partition_lasts_s: tuple[float, float] = (3.0, 14.0)
    # One of two parties does not hear the other.
    one_way_cuts: int = 1
    one_way_cut_lasts_s: tuple[float, float] = (2.0, 14.0)
    # Someone sets the clock of a machine wrong, and right again.
    clock_jumps: int = 1
    clock_jump_lasts_s: tuple[float, float] = (0.5, 15.0)
    far_links: int = 1
    far_link_lasts_s: tuple[float, float] = (5.0, 20.0)
    far_link_latency_s: float = 0.6
    slow_nodes: int = 1
    slow_lasts_s: tuple[float, float] = (5.0, 20.0)
    slowdown: float = 8.0
    refusals: int = 1
    refusal_lasts_s: tuple[float, float] = (5.0, 20.0)
    # Parties that are not honest, as long as the chaos lasts.
    bad_nodes: tuple[Vice, ...] = ()
    bad_clients: tuple[Habit, ...] = ()
    worker_crashes: int = 2
    worker_restart_s: tuple[float, float] = (0.3, 3.0)
    skew_ms_max: int = SKEW_MS_MAX


# Clocks that differ are no fault.
NO_FAULTS = Faults(
    kills=0,
    coordinator_kills=0,
    paired_kills=0,
    restarts=0,
    power_cuts=0,
    node_power_cuts=0,
    disk_fulls=0,
    partitions=0,
    one_way_cuts=0,
    clock_jumps=0,
    far_links=0,
    slow_nodes=0,
    refusals=0,
    worker_crashes=0,
)


@dataclass(frozen=True, slots=True)
class Demand:
    """What clients want. The last client has money for few of its jobs."""

    jobs: int = 80
    # That many come at about the same time, or queues would never fill.
    burst: int = 8
    burst_s: float = 0.5
    cancel_share: float = 0.15
    bad_input_share: float = 0.05
    embedding_share: float = 0.15
    tokens: tuple[int, int] = (4, 100)
    # Of all jobs, those with the deadline that programs give where their users say nothing; and
    # what the other users say.
    usual_deadline_share: float = 0.6
    deadline_s: tuple[float, float] = (20.0, 60.0)
    credit_nano: int = NANO_PER_CREDIT
    poor_credit_nano: int = 150_000
    # Of all bursts, those that come from one API key; of the other jobs, those with any key.
    gateway_burst_share: float = 0.2
    gateway_share: float = 0.2
    # Of the gateway's jobs, those whose body trickles in: their key was looked up long before its
    # money is held.
    slow_body_share: float = 0.2
    slow_body_s: tuple[float, float] = (1.0, 10.0)
    # In a world with lease pools so many of the jobs come in runs, so long and so far apart: one
    # buyer asks for jobs that are alike one after another. Nothing else is what a pool is for.
    runs: int = 3
    run_jobs: tuple[int, int] = (6, 12)
    run_gap_s: tuple[float, float] = (0.1, 1.5)


@dataclass(frozen=True, slots=True)
class KeyPlan:
    """An API key of the gateway, of the account with a number; None is no limit, or never.
    `revoked_at_s` counts from when the chaos begins."""

    account: int = 0
    budget_nano: int | None = None
    requests_per_minute: int | None = None
    revoked_at_s: float | None = None


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """Who leases ahead of its jobs: clients by number, and the coordinator's own gateway for the
    users with an API key. A pool keeps up to `leases` of each class of jobs."""

    leases: int = 0
    clients: tuple[int, ...] = ()
    is_at_gateway: bool = False


NO_POOLS = PoolPlan()


@dataclass(frozen=True, slots=True)
class WorldOptions:
    """One world. Equal options and an equal seed make equal traces."""

    nodes: int = 5
    clients: int = _CLIENTS
    api_keys: tuple[KeyPlan, ...] = (KeyPlan(),)
    machines: tuple[SimMachine, ...] = MACHINES
    bounds: MarketBounds = DEFAULT_BOUNDS
    fee_bps: int = 500
    chaos_s: float = 40.0
    network: Network = field(default_factory=Network)
    faults: Faults = field(default_factory=Faults)
    demand: Demand = field(default_factory=Demand)
    pools: PoolPlan = NO_POOLS

    @property
    def pooled_buyers(self) -> tuple[int, ...]:
        """Those whose jobs find leases that were taken ahead: clients, and then API keys."""
        keys = range(self.clients, self.clients + len(self.api_keys))
        return (*self.pools.clients, *(keys if self.pools.is_at_gateway else ()))

    def leases_ahead_of(self, client: int) -> int:
        """Of each class of jobs of a client; 0 without a pool."""
        return self.pools.leases if client in self.pools.clients else 0


def draw_options(seed: int) -> WorldOptions:
    """The world of a seed: in each a node is killed and a partition heals, the rest as it falls."""
    rng = random.Random(f"options {seed}")
    return WorldOptions(
        api_keys=_draw_keys(random.Random(f"keys {seed}")),
        machines=_draw_machines(random.Random(f"machines {seed}")),
        bounds=_draw_bounds(random.Random(f"bounds {seed}")),
        fee_bps=rng.choice((0, 250, 500, 1_111)),
        network=Network(
            latency_s=(0.001, rng.choice((0.01, 0.08, 0.15))),
            loss=rng.choice((0.0, 0.01, 0.05)),
            gossip_delay_s=rng.choice((0.5, 4.0)),
            gossip_duplicates=rng.choice((0.1, 0.5)),
        ),
        faults=Faults(
            kills=rng.randint(1, 4),
            coordinator_kills=rng.randint(0, 1),
            paired_kills=rng.randint(0, 1),
            restarts=rng.randint(0, 1),
            power_cuts=rng.randint(0, 1),
            node_power_cuts=rng.randint(0, 1),
            disk_fulls=rng.randint(0, 1),
            one_way_cuts=rng.randint(0, 2),
            clock_jumps=rng.randint(0, 2),
            partitions=rng.randint(1, 3),
            far_links=rng.randint(1, 3),
            slow_nodes=rng.randint(1, 2),
            refusals=rng.randint(1, 2),
            worker_crashes=rng.randint(1, 4),
            bad_nodes=tuple(rng.sample(tuple(Vice), rng.randint(0, 1))),
            bad_clients=tuple(rng.sample(tuple(Habit), rng.randint(0, 2))),
        ),
        demand=Demand(
            jobs=rng.randint(40, 70),
            burst=rng.randint(2, 12),
            cancel_share=rng.uniform(0.1, 0.3),
            poor_credit_nano=rng.randint(60_000, 300_000),
        ),
        pools=_draw_pools(random.Random(f"pools {seed}")),
    )


def _draw_machines(rng: random.Random) -> tuple[SimMachine, ...]:
    """Machines whose prices leave a rest per token, so that it shows where a charge is rounded."""
    return tuple(replace(machine, price=_odd(machine.price, rng)) for machine in MACHINES)


def _odd(price: PriceSheet, rng: random.Random) -> PriceSheet:
    return PriceSheet(
        input_nano_per_mtok=int(price.input_nano_per_mtok * rng.uniform(0.8, 1.25)) | 1,
        output_nano_per_mtok=int(price.output_nano_per_mtok * rng.uniform(0.8, 1.25)) | 1,
        request_nano=rng.choice((0, rng.randint(1, 99))),
    )


def _draw_bounds(rng: random.Random) -> MarketBounds:
    """Bounds that a world reaches, or that none does."""
    return MarketBounds(
        sweep_every_s=rng.choice((0.5, 2.0, 5.0)),
        sweep_max=rng.choice((1, 3, 500)),
        batch_max=rng.choice((16, 64, 1_000)),
        receipts_remembered_max=rng.choice((1, 8, 1_024)),
        clients_remembered_max=rng.choice((2, 4, 50_000)),
        answers_restored_max=rng.choice((4, 2_000)),
        leases_restored_max=rng.choice((4, 20_000)),
        lease_open_within_ms=rng.choice((8_000, 15_000, 30_000)),
        windows=WindowRange(rng.choice((16, 23, 48)), rng.choice((64, 256))),
    )


def _draw_pools(rng: random.Random) -> PoolPlan:
    """In every other world one client or two with money lease ahead. The poor one may want to: its
    share of its money is worth few leases."""
    if rng.random() < _NO_POOLS_SHARE:
        return NO_POOLS
    poor = _CLIENTS - 1
    rich = rng.sample(range(poor), rng.randint(1, poor))
    return PoolPlan(
        leases=rng.choice((2, 4, LEASES_PER_CLASS)),
        clients=(*rich, poor) if rng.random() < 0.25 else tuple(rich),
        is_at_gateway=rng.random() < 0.5,
    )


def _draw_keys(rng: random.Random) -> tuple[KeyPlan, ...]:
    """One that may do everything, one with little money, one that is revoked, and one that has both
    a limit and money for some jobs."""
    return (
        KeyPlan(account=0),
        KeyPlan(account=1, budget_nano=rng.randint(30_000, 250_000)),
        KeyPlan(account=rng.randrange(2), revoked_at_s=rng.uniform(2.0, 35.0)),
        KeyPlan(
            account=0,
            budget_nano=rng.randint(100_000, 500_000),
            requests_per_minute=rng.randint(2, 12),
        ),
    )
