"""One deterministic world: a real coordinator, real nodes and real clients on a network in memory.

First chaos: demand and faults together, with invariants looked at all the time. Then quiet: the
network is whole, nothing fails, and progress is demanded: every job ends, every hold is resolved,
every receipt is handed in, new jobs are answered, and an independent auditor agrees with the books.

No thread, no socket, no clock but trio's virtual one; all chance comes from the seed.
"""

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

import trio

from coordinator.audit.books import audit
from coordinator.db.engine import Connection
from protocol.errors import Code
from protocol.ids import JobId
from protocol.limits import RECEIPT_GRACE_MS
from protocol.programs.runtime import child_rng
from sim.api_user import ApiUser
from sim.auditor import Auditor, Balances
from sim.book_rows import BookRows, check_ended, check_promises, check_rows, read_rows
from sim.buyer import Buyer, JobReport
from sim.checkers import (
    check_bad_client,
    check_bad_node,
    check_book,
    check_channels,
    check_holds,
    check_idle,
    check_job,
    check_model,
    check_shares,
    honest_shares,
)
from sim.determinism import run_deterministically
from sim.faults import carry_out, plan_faults
from sim.key_rows import (
    KeyedLease,
    KeyRow,
    check_budgets,
    check_charges,
    read_keys,
    read_open_leases,
)
from sim.options import WorldOptions, draw_options
from sim.parties import make_parties, read_balances
from sim.switches import make_switches
from sim.trace import Trace, Voice
from sim.vices import Vice
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
LOOK_EVERY_S = 1.0
# When nothing fails, minutes are waited for deadlines in which little happens.
QUIET_LOOK_EVERY_S = 5.0
# While the world waits for something, it looks for that so often between two looks at everything.
POLLS_PER_LOOK = 4
# A coordinator's sweep waits for the disk.
SWEEP_TAKES_MS = 1_000


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
        self._violations: dict[str, None] = {}
        self._reports: list[JobReport] = []
        self._look_every_s = LOOK_EVERY_S
        # When the holds of jobs that came through the gateway have to be over, in virtual time.
        self._holds_until: dict[JobId, float] = {}
        self._faults: Counter[str] = Counter()
        self._honest_shares = honest_shares(options.faults)
        # A hold may time out right after a sweep.
        self._hold_late_ms = int(2_000 * options.bounds.sweep_every_s) + SWEEP_TAKES_MS
        trace.add("world", "options", seed=seed, options=options)
        self._parties = make_parties(options, rng, trace)
        self._garblers = {
            node.key.peer_id for node in self._parties.bad_nodes if node.vice is Vice.GARBAGE
        }
        self._parties.coordinator.disk.inspect = self._look_at_disk

    async def run(self) -> WorldResult:
        probes: tuple[JobReport, ...] = ()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._look_forever)
            try:
                await self._start(nursery)
                await self._make_chaos(nursery)
                probes = await self._demand_progress()
            except Stuck as stuck:
                self._violate(f"no progress: {stuck}")
            balances = self._judge()
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
        await self._wait_until(self._is_market_open, READY_WITHIN_S, "the nodes attach")
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
        await self._wait_until(self._is_market_open, READY_WITHIN_S, "all nodes are back")
        probes = plan_probes(self.options, child_rng(self._rng))
        answered = tuple([await self._run_probe(planned) for planned in probes])
        within_s = ASKED_WITHIN * (jobs_end_s + PAID_AFTER_S)
        self._look_every_s = QUIET_LOOK_EVERY_S
        await self._wait_until(self._is_settled, within_s, "everything is settled")
        self.trace.add("world", "settled")
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
        refusals = _refusals_of(self._buyer_of(planned))
        for _ in range(PROBE_TRIES):
            report = await self._buy(planned)
            if report.code in refusals or (report.outcome is not None and None in refusals):
                return report
            await trio.sleep(PROBE_AGAIN_S)
        raise Stuck(f"{planned.name} is not answered although nothing fails: {report.code}")

    def _buyer_of(self, planned: PlannedJob) -> Buyer | ApiUser:
        buyers: tuple[Buyer | ApiUser, ...] = (*self._parties.buyers, *self._parties.users)
        return buyers[planned.buyer]

    async def _buy(self, planned: PlannedJob) -> JobReport:
        buyer = self._buyer_of(planned)
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
        if isinstance(buyer, ApiUser) and report.job_id is not None:
            within_s = planned.spec.deadline_s + RECEIPT_GRACE_MS / 1000 + self._hold_late_ms / 1000
            self._holds_until[report.job_id] = trio.current_time() + within_s
        is_garbled = report.node in self._garblers
        honest = {*self._honest_shares, *buyer.honest_codes}
        for violation in check_job(report, honest=honest, is_garbled=is_garbled):
            self._violate(violation)
        return report

    async def _wait_until(self, is_true: Callable[[], bool], within_s: float, what: str) -> None:
        gives_up_at = trio.current_time() + within_s
        while trio.current_time() < gives_up_at:
            if is_true():
                return
            await trio.sleep(self._look_every_s / POLLS_PER_LOOK)
        left = "; ".join(self._left_over())
        raise Stuck(f"{what}: not within {within_s:g} s ({left})")

    # Looking at it.

    def _is_market_open(self) -> bool:
        coordinator = self._parties.coordinator.current
        if coordinator is None:
            return False
        attached = {entry.node for entry in coordinator.market.book if entry.is_attached}
        return all(node.host.is_up and node.key.peer_id in attached for node in self._parties.nodes)

    def _is_settled(self) -> bool:
        return next(self._left_over(), None) is None

    def _left_over(self) -> Iterator[str]:
        """What is not yet as it was before the first job: money, receipts, slots, channels."""
        coordinator = self._parties.coordinator.current
        if coordinator is None:
            yield "the coordinator is down"
            return
        if len(coordinator.leases):
            yield f"{len(coordinator.leases)} leases are open"
        yield from check_book(coordinator.market.book)
        for node in self._parties.nodes:
            if node.is_owed:
                yield f"{node.name} waits for the last word on a receipt"
            for model in node.models:
                yield from check_idle(f"{node.name}'s {model.name}", model)
        for buyer in self._parties.buyers:
            yield from check_channels(buyer.name, buyer.channels_open, 0)
        channels = coordinator.pool.statistics().channels
        yield from check_channels(self._parties.coordinator.host.name, channels, 0)

    async def _look_forever(self) -> None:
        while True:
            await trio.sleep(self._look_every_s)
            with self._parties.coordinator.books() as conn:
                balances = read_balances(conn)
                keys = read_keys(conn)
                leases = read_open_leases(conn)
            for violation in self._look(balances.held_nano):
                self._violate(violation)
            for violation in (*check_budgets(keys), *self._check_key_holds(leases)):
                self._violate(violation)

    def _check_key_holds(self, leases: Iterable[KeyedLease]) -> Iterator[str]:
        """No hold of a key outlives its purchase by more than a deadline and what a receipt may be
        late; a coordinator that was away gives receipts that time again."""
        coordinator = self._parties.coordinator
        if coordinator.current is None:
            return
        grace_s = (RECEIPT_GRACE_MS + self._hold_late_ms) / 1000
        now = trio.current_time()
        for lease in leases:
            until = self._holds_until.get(JobId(lease.job_id), now)
            late_s = now - max(until, coordinator.started_at + grace_s)
            if late_s > 0:
                yield f"lease {lease.lease_id} has money of its key {late_s:g} s too long"

    def _look(self, held_nano: Mapping[str, int]) -> Iterator[str]:
        coordinator = self._parties.coordinator.current
        if coordinator is not None:
            now_ms = self._parties.clock.now_ms()
            yield from check_holds(
                coordinator.leases, held_nano, now_ms=now_ms, late_ms=self._hold_late_ms
            )
        for node in self._parties.nodes:
            for model in node.models:
                yield from check_model(f"{node.name}'s {model.name}", model)
        for buyer in self._parties.buyers:
            yield from check_channels(buyer.name, buyer.channels_open, 1 + len(self._parties.nodes))

    def _look_at_disk(self, conn: Connection) -> None:
        """Right after a power cut: nothing that was acknowledged may be lost."""
        rows, auditor = read_rows(conn), self._parties.auditor
        for violation in (
            *check_rows(rows),
            *self._check_keys(rows, read_keys(conn)),
            *_check_promises(rows, auditor),
        ):
            self._violate(f"the books after a power cut: {violation}")

    def _check_keys(self, rows: BookRows, keys: Sequence[KeyRow]) -> Iterator[str]:
        revoked_after = {
            user.key_id: user.revoked_after
            for user in self._parties.users
            if user.revoked_after is not None
        }
        yield from check_budgets(keys)
        yield from check_charges(rows, keys, revoked_after)

    def _violate(self, what: str) -> None:
        if what not in self._violations:
            self._violations[what] = None
            self.trace.add("world", "violation", what=what.splitlines()[0])

    def _judge(self) -> Balances:
        """The end: what was logged as an error, and both audits. Returns what the parties have."""
        with self._parties.coordinator.books() as conn:
            own = audit(conn)
            balances = read_balances(conn)
            rows = read_rows(conn)
            keys = read_keys(conn)
        auditor = self._parties.auditor
        promised = _check_promises(rows, auditor)
        keyed = self._check_keys(rows, keys)
        for finding in (*check_rows(rows), *keyed, *check_ended(rows), *promised):
            self._violate(f"the rows of the books: {finding}")
        for node in self._parties.bad_nodes:
            leased = auditor.jobs_at(node.key.peer_id)
            for violation in check_bad_node(node.name, node.vice, leased, self._reports):
                self._violate(violation)
        for client in self._parties.bad_clients:
            for violation in check_bad_client(client.name, client.habit, client.codes):
                self._violate(violation)
        unexplained = [
            report
            for report in self._reports
            if report.code not in self._buyer_of(report.planned).honest_codes
        ]
        for violation in check_shares(unexplained, self._honest_shares):
            self._violate(violation)
        for alarm in self.trace.alarms:
            self._violate(alarm)
        for own_finding in own.findings:
            self._violate(f"the ledger's own audit: {own_finding}")
        for verdict in auditor.audit(balances):
            self._violate(f"the auditor: {verdict}")
        return balances

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
            violations=tuple(self._violations),
        )


def _check_promises(rows: BookRows, auditor: Auditor) -> Iterator[str]:
    return check_promises(rows, auditor.leases(), auditor.promises(), auditor.declared())


def _refusals_of(buyer: Buyer | ApiUser) -> frozenset[Code | None]:
    """How a job of this buyer may end where nothing fails; None is an answer."""
    if isinstance(buyer, ApiUser) and buyer.revoked_after is not None:
        return frozenset({Code.UNKNOWN_API_KEY})
    return frozenset({None, *buyer.honest_codes})
