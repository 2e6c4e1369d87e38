"""One deterministic world: a real coordinator, real nodes and real clients on a network in memory.

First chaos: demand and faults together, with invariants looked at all the time. Then quiet: the
network is whole, nothing fails, and progress is demanded: every job ends, every hold is resolved,
every receipt is handed in, new jobs are answered, and an independent auditor agrees with the books.

No thread, no socket, no clock but trio's virtual one; all chance comes from the seed.
"""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TextIO

import trio

from protocol.errors import Code
from protocol.limits import RECEIPT_GRACE_MS
from protocol.programs.runtime import child_rng
from sim.api_user import ApiUser
from sim.auditor import Balances
from sim.buyer import Buyer, JobReport
from sim.determinism import run_deterministically
from sim.faults import carry_out, plan_faults
from sim.inspector import Inspector
from sim.options import WorldOptions, draw_options
from sim.parties import make_parties
from sim.switches import make_switches
from sim.trace import Trace, Voice
from sim.workload import PlannedJob, longest_s, plan_jobs, plan_probes

# Attaching is a dial and two round trips; with a second between tries.
READY_WITHIN_S = 30.0
# What a party that was cut off takes to notice the deadline of a job.
NOTICED_WITHIN_S = 30.0
# A receipt may be late by the grace of its hold; then come the coordinator's own rounds.
PAID_AFTER_S = RECEIPT_GRACE_MS / 1000 + 60.0
# A node asks about a receipt that waits at intervals that double.
ASKED_WITHIN = 2.0
# A breaker that opened in the chaos forgives within this; a client would come back as well.
PROBE_TRIES = 6
PROBE_AGAIN_S = 20.0
# While the world waits for something, it looks for that so often between two looks at everything.
POLLS_PER_LOOK = 4


class Stuck(Exception):
    """The world makes no progress; the message says what did not happen."""


@dataclass(frozen=True, slots=True)
class WorldResult:
    """A world after its end. It went well if `violations` is empty."""

    seed: int
    options: WorldOptions
    jobs: tuple[JobReport, ...]
    probes: tuple[JobReport, ...]
    credited_nano: int
    money_nano: dict[str, int]
    captured_nano: int
    leases: int
    faults: dict[str, int]
    network: dict[str, int]
    events: dict[str, int]
    trace_lines: int
    trace_sha256: str
    virtual_s: float
    violations: tuple[str, ...]


def run_world(
    seed: int, *, options: WorldOptions | None = None, sink: TextIO | None = None
) -> WorldResult:
    """Run the world of a seed. Its trace goes to `sink`; nothing else is read or written."""
    chosen = options if options is not None else draw_options(seed)

    async def main(rng: random.Random) -> WorldResult:
        trace = Trace(trio.current_time, sink=sink)
        with trace.logs_captured():
            world = SimWorld(seed, chosen, rng, trace)
            try:
                return await world.run()
            finally:
                world.close()

    return run_deterministically(main, seed)


class SimWorld:
    """All parties of one run. `run` is its whole life."""

    def __init__(self, seed: int, options: WorldOptions, rng: random.Random, trace: Trace) -> None:
        self.seed = seed
        self.options = options
        self.trace = trace
        self._rng = rng
        self._reports: list[JobReport] = []
        self._faults: Counter[str] = Counter()
        trace.add("world", "options", seed=seed, options=options)
        self._parties = make_parties(options, rng, trace)
        self._inspector = Inspector(self._parties, options, trace)

    async def run(self) -> WorldResult:
        probes: tuple[JobReport, ...] = ()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._inspector.look_forever)
            try:
                await self._start(nursery)
                await self._make_chaos(nursery)
                probes = await self._demand_progress()
            except Stuck as stuck:
                self._inspector.violate(f"no progress: {stuck}")
            balances = self._inspector.judge(self._reports)
            nursery.cancel_scope.cancel()
        return self._result(probes, balances)

    def close(self) -> None:
        self._parties.close()

    # The phases.

    async def _start(self, nursery: trio.Nursery) -> None:
        nursery.start_soon(self._parties.coordinator.host.run)
        for node in self._parties.nodes:
            nursery.start_soon(node.host.run)
        for buyer in (*self._parties.buyers, *self._parties.bad_clients):
            with Voice(buyer.name).speaking():
                await nursery.start(buyer.run)
        for bad_node in self._parties.bad_nodes:
            nursery.start_soon(bad_node.host.run)
            nursery.start_soon(bad_node.misbehave)
        for bad_client in self._parties.bad_clients:
            nursery.start_soon(bad_client.misbehave)
        await self._wait_until(self._inspector.is_market_open, READY_WITHIN_S, "the nodes attach")
        self.trace.add("world", "market_open", nodes=len(self._parties.nodes))

    async def _make_chaos(self, nursery: trio.Nursery) -> None:
        faults = plan_faults(self.options, child_rng(self._rng))
        self._faults.update(fault.kind.value for fault in faults)
        nodes = tuple(node.key.peer_id for node in self._parties.nodes)
        jobs = plan_jobs(self.options, nodes, child_rng(self._rng))
        self.trace.add("world", "chaos_began", faults=len(faults), jobs=len(jobs))
        for planned in jobs:
            nursery.start_soon(self._run_job, planned)
        for user in self._parties.users:
            nursery.start_soon(self._revoke_in_time, user)
        switches = make_switches(self._parties, self.options.faults, self.trace)
        await carry_out(faults, switches, self.trace)

    async def _demand_progress(self) -> tuple[JobReport, ...]:
        self._parties.network.heal()
        self.trace.add("world", "quiet_began")
        demand = self.options.demand
        jobs_end_s = longest_s(demand)
        await self._wait_until(
            lambda: len(self._reports) == demand.jobs, jobs_end_s + NOTICED_WITHIN_S, "jobs end"
        )
        await self._wait_until(self._inspector.is_market_open, READY_WITHIN_S, "all nodes are back")
        probes = plan_probes(self.options, child_rng(self._rng))
        answered = tuple([await self._run_probe(planned) for planned in probes])
        within_s = ASKED_WITHIN * (jobs_end_s + PAID_AFTER_S)
        self._inspector.is_quiet = True
        await self._wait_until(self._inspector.is_settled, within_s, "everything is settled")
        self.trace.add("world", "settled")
        self._inspector.tell_leases_ahead()
        return answered

    async def _run_job(self, planned: PlannedJob) -> None:
        await trio.sleep(planned.at_s)
        self._reports.append(await self._buy(planned))

    async def _revoke_in_time(self, user: ApiUser) -> None:
        if user.plan.revoked_at_s is None:
            return
        await trio.sleep(user.plan.revoked_at_s)
        with self._parties.coordinator.books() as conn:
            user.revoke(conn, now_ms=self._parties.clock.now_ms())
        self.trace.add(user.name, "key_revoked")

    async def _run_probe(self, planned: PlannedJob) -> JobReport:
        refusals = _refusals_of(self._parties.buyer_of(planned.buyer))
        for _ in range(PROBE_TRIES):
            report = await self._buy(planned)
            if report.code in refusals or (report.outcome is not None and None in refusals):
                return report
            await trio.sleep(PROBE_AGAIN_S)
        raise Stuck(f"{planned.name} is not answered although nothing fails: {report.code}")

    async def _buy(self, planned: PlannedJob) -> JobReport:
        buyer = self._parties.buyer_of(planned.buyer)
        with Voice(buyer.name).speaking():
            self.trace.add(buyer.name, "job_asked", job=planned.name, model=planned.spec.model)
            report = await buyer.buy(planned)
        self.trace.add(
            buyer.name,
            "job_ended",
            job=planned.name,
            end=report.end,
            code=report.code or "-",
            node=report.node or "-",
            attempts=report.attempts,
            chunks=report.chunks,
            tokens=len(report.token_ids),
            total_ms=round(report.total_ms, 3),
        )
        self._inspector.note_ended(report)
        return report

    async def _wait_until(self, is_true: Callable[[], bool], within_s: float, what: str) -> None:
        gives_up_at = trio.current_time() + within_s
        while trio.current_time() < gives_up_at:
            if is_true():
                return
            await trio.sleep(self._inspector.look_every_s / POLLS_PER_LOOK)
        left = "; ".join(self._inspector.left_over())
        raise Stuck(f"{what}: not within {within_s:g} s ({left})")

    def _result(self, probes: tuple[JobReport, ...], balances: Balances) -> WorldResult:
        names = self._parties.names()
        money = {names[account]: nano for account, nano in balances.posted_nano.items()}
        money["operator"] = balances.operator_nano
        money["goodwill"] = balances.goodwill_nano
        self.trace.add("world", "ended", **{k.replace("-", "_"): v for k, v in money.items()})
        return WorldResult(
            seed=self.seed,
            options=self.options,
            jobs=tuple(sorted(self._reports, key=lambda report: report.planned.number)),
            probes=probes,
            credited_nano=self._parties.auditor.credited_nano,
            money_nano=dict(sorted(money.items())),
            captured_nano=self._parties.auditor.captured_nano(balances.gifts),
            leases=self._parties.auditor.leases_seen,
            faults=dict(sorted(self._faults.items())),
            network=dict(sorted(self._parties.network.counts.items())),
            events=dict(sorted(self.trace.counts.items())),
            trace_lines=self.trace.lines,
            trace_sha256=self.trace.hexdigest(),
            virtual_s=trio.current_time(),
            violations=tuple(self._inspector.violations),
        )


def _refusals_of(buyer: Buyer | ApiUser) -> frozenset[Code | None]:
    """How a job of this buyer may end where nothing fails; None is an answer."""
    if isinstance(buyer, ApiUser) and buyer.revoked_after is not None:
        return frozenset({Code.UNKNOWN_API_KEY})
    return frozenset({None, *buyer.honest_codes})
