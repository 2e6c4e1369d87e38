"""Looks at a world while it runs, and judges it at its end. What is right is in the checkers, the
auditor and the row checks; here they are shown the parties.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import trio

from coordinator.audit.books import audit
from coordinator.db.engine import Connection
from protocol.errors import Code
from protocol.ids import JobId
from protocol.limits import LEASE_OPEN_WITHIN_MS, RECEIPT_GRACE_MS
from sim.api_user import ApiUser
from sim.auditor import Auditor, Balances
from sim.book_rows import BookRows, check_ended, check_promises, check_rows, read_rows
from sim.buyer import JobReport
from sim.checkers import (
    check_bad_client,
    check_bad_node,
    check_book,
    check_channels,
    check_holds,
    check_idle,
    check_job,
    check_model,
    check_pool,
    check_shares,
    check_taken_ahead,
    ended_at_node,
    honest_shares,
)
from sim.key_rows import (
    KeyedLease,
    KeyRow,
    check_budgets,
    check_charges,
    read_keys,
    read_open_leases,
)
from sim.options import WorldOptions
from sim.parties import Parties, read_balances
from sim.trace import Trace
from sim.vices import Vice

LOOK_EVERY_S = 1.0
# In the end minutes are waited for deadlines, in which little happens.
QUIET_LOOK_EVERY_S = 5.0
# A coordinator's sweep waits for the disk.
SWEEP_TAKES_MS = 1_000


class Inspector:
    """Collects what is wrong with a world in `violations`, each once. `is_quiet` from when all jobs
    have ended and only deadlines are waited for."""

    def __init__(self, parties: Parties, options: WorldOptions, trace: Trace) -> None:
        self.violations: dict[str, None] = {}
        self.is_quiet = False
        self._parties = parties
        self._trace = trace
        self._ended: list[JobReport] = []
        # When the holds of jobs that came through the gateway have to be over, in virtual time.
        self._holds_until: dict[JobId, float] = {}
        self._honest_shares = honest_shares(options.faults)
        # A hold may time out right after a sweep.
        self._hold_late_ms = int(2_000 * options.bounds.sweep_every_s) + SWEEP_TAKES_MS
        self._opened_late_ms = LEASE_OPEN_WITHIN_MS + 1_000 if options.pools.is_at_gateway else 0
        # Those with a bound of their own (`check_bad_node`).
        self._bad_nodes = {
            node.key.peer_id for node in parties.bad_nodes if node.vice is not Vice.GARBAGE
        }
        self._garblers = {
            node.key.peer_id for node in parties.bad_nodes if node.vice is Vice.GARBAGE
        }
        parties.coordinator.disk.inspect = self._look_at_disk

    @property
    def look_every_s(self) -> float:
        return QUIET_LOOK_EVERY_S if self.is_quiet else LOOK_EVERY_S

    def note_ended(self, report: JobReport) -> None:
        """A job has ended for its buyer, or a probe."""
        self._ended.append(report)
        buyer = self._parties.buyer_of(report.planned.buyer)
        if isinstance(buyer, ApiUser) and report.job_id is not None:
            # A lease that was there before its job is there for longer by the time to open it.
            late_ms = RECEIPT_GRACE_MS + self._hold_late_ms + self._opened_late_ms
            late_s = late_ms / 1000
            until = trio.current_time() + report.planned.spec.deadline_s + late_s
            self._holds_until[report.job_id] = until
        is_garbled = not self._garblers.isdisjoint(report.nodes)
        honest = {*self._honest_shares, *buyer.honest_codes}
        for violation in check_job(report, honest=honest, is_garbled=is_garbled):
            self.violate(violation)

    def _is_explained(self, report: JobReport) -> bool:
        """Whether its end says nothing about the market: what a key's own limits refuse, a lost
        coordinator for a user of the gateway, who asks once, and a bad node, which has a bound of
        its own."""
        buyer = self._parties.buyer_of(report.planned.buyer)
        is_cut_off = isinstance(buyer, ApiUser) and report.code is Code.COORDINATOR_LOST
        is_at_bad_node = report.node in self._bad_nodes and ended_at_node(report)
        return is_cut_off or is_at_bad_node or report.code in buyer.honest_codes

    def is_market_open(self) -> bool:
        coordinator = self._parties.coordinator.current
        if coordinator is None:
            return False
        attached = {entry.node for entry in coordinator.market.book if entry.is_attached}
        return all(node.host.is_up and node.key.peer_id in attached for node in self._parties.nodes)

    def is_settled(self) -> bool:
        return next(self.left_over(), None) is None

    def left_over(self) -> Iterator[str]:
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
            yield from check_pool(buyer.name, buyer.leases_ready)
        channels = coordinator.pool.statistics().channels
        yield from check_channels(self._parties.coordinator.host.name, channels, 0)
        ready = coordinator.client.leases.counts().ready
        yield from check_pool(self._parties.coordinator.host.name, ready)

    def tell_leases_ahead(self) -> None:
        """Which leases that were there before their jobs have served one."""
        asked = {report.job_id for report in self._ended}
        for lease_id, taken in self._parties.auditor.taken_ahead().items():
            event = "lease_ahead_used" if taken.job_id in asked else "lease_ahead_unused"
            self._trace.add("world", event, lease_id=lease_id, captured_nano=taken.captured_nano)

    async def look_forever(self) -> None:
        while True:
            await trio.sleep(self.look_every_s)
            with self._parties.coordinator.books() as conn:
                balances = read_balances(conn)
                keys = read_keys(conn)
                leases = read_open_leases(conn)
            for violation in self._look(balances.held_nano):
                self.violate(violation)
            for violation in (*check_budgets(keys), *self._check_key_holds(leases)):
                self.violate(violation)

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
            self.violate(f"the books after a power cut: {violation}")

    def _check_keys(self, rows: BookRows, keys: Sequence[KeyRow]) -> Iterator[str]:
        revoked_after = {
            user.key_id: user.revoked_after
            for user in self._parties.users
            if user.revoked_after is not None
        }
        yield from check_budgets(keys)
        yield from check_charges(rows, keys, revoked_after)

    def violate(self, what: str) -> None:
        if what not in self.violations:
            self.violations[what] = None
            self._trace.add("world", "violation", what=what.splitlines()[0])

    def judge(self, reports: Sequence[JobReport]) -> Balances:
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
            self.violate(f"the rows of the books: {finding}")
        for node in self._parties.bad_nodes:
            leased = auditor.jobs_at(node.key.peer_id)
            for violation in check_bad_node(node.name, node.vice, leased, reports):
                self.violate(violation)
        for client in self._parties.bad_clients:
            for violation in check_bad_client(client.name, client.habit, client.codes):
                self.violate(violation)
        for violation in check_taken_ahead(auditor.taken_ahead(), self._ended):
            self.violate(violation)
        unexplained = [report for report in reports if not self._is_explained(report)]
        for violation in check_shares(unexplained, self._honest_shares):
            self.violate(violation)
        for alarm in self._trace.alarms:
            self.violate(alarm)
        for own_finding in own.findings:
            self.violate(f"the ledger's own audit: {own_finding}")
        for verdict in auditor.audit(balances):
            self.violate(f"the auditor: {verdict}")
        return balances


def _check_promises(rows: BookRows, auditor: Auditor) -> Iterator[str]:
    return check_promises(rows, auditor.leases(), auditor.promises(), auditor.declared())
