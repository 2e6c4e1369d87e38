"""Receipts that the coordinator has not acknowledged yet. They are the node's money: each is on
disk before the client sees it, and stays there through restarts until it is handed in.

What is owed is kept in memory as well, so that the disk is written only: once for a job before its
receipt leaves, and once more, with other jobs, for what became of it. One task writes, in a thread;
nothing of this is on the path of a token. Handing in is `capanode.control`; the SQL is
`capanode.outbox_store`.
"""

import heapq
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import structlog
import trio
from trio.lowlevel import ParkingLot

from capanode.errors import OutboxError
from capanode.outbox_store import (
    EARLIER,
    WAITING,
    Change,
    Earning,
    OutboxReceipt,
    OutboxStore,
    acknowledge,
    put_receipt,
    refuse,
)
from protocol.clock import Clock
from protocol.envelope import Signed, open_envelope
from protocol.ids import Digest, LeaseId, PeerId
from protocol.messages import Acceptance, Receipt
from protocol.programs.runners import Runner
from protocol.services import DAY_MS

log = structlog.get_logger(__name__)

# At 2 KB each, 20 MB on disk and in memory: a day without a coordinator at one job in ten seconds.
RECEIPTS_MAX = 10_000
# Evidence for an argument, not an archive.
REFUSED_MAX = 1_000

# A client countersigns within a round trip. Waiting this long saves handing in twice.
ACCEPTANCE_WAIT_MS = 2_000

# What no job waits for is written with the next receipt, or after this. A node that is killed
# meanwhile hands a receipt in again, to no effect.
WRITTEN_WITHIN_S = 1.0

# A full disk is looked at again this often; meanwhile the node takes no work.
FULL_RETRY_S = 5.0

# What is due is looked for at least this often, should the wall clock have been set back.
_LOOK_AGAIN_S = 30.0


@dataclass(frozen=True, slots=True)
class MadeBy:
    """What earned the money of a job, for the owner's accounts."""

    model: str = ""
    device: str = ""


@dataclass(frozen=True, slots=True)
class PaidTotals:
    """What coordinators have paid, after their fees; days are those of UTC."""

    today_nano: int
    all_nano: int


@dataclass(slots=True)
class Pending:
    """What becomes durable together: receipts as they are in memory then, and other changes."""

    puts: dict[LeaseId, PeerId] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)
    # A job waits: it is written at once.
    is_urgent: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    error: OutboxError | None = None

    @property
    def is_empty(self) -> bool:
        return not self.puts and not self.changes

    async def wait(self) -> None:
        """Returns when they are durable.

        Raises OutboxError if they are not; they are kept in memory then and tried again.
        """
        await self.done.wait()
        if self.error is not None:
            raise self.error


@dataclass(slots=True)
class _Owed:
    """What one coordinator is owed. Its waiter, if there is one, looks again at `looks_at_ms`."""

    receipts: dict[LeaseId, OutboxReceipt] = field(default_factory=dict)
    news: ParkingLot = field(default_factory=ParkingLot)
    looks_at_ms: float = math.inf

    def put(self, stored: OutboxReceipt) -> None:
        self.receipts[stored.lease_id] = stored
        if stored.due_ms < self.looks_at_ms:
            self.news.unpark_all()


class Outbox:
    """See the module docstring. `run` must be running; it writes what is left when it ends."""

    def __init__(
        self,
        store: OutboxStore,
        *,
        clock: Clock,
        runner: Runner,
        made_by: Callable[[Digest], MadeBy] = lambda _: MadeBy(),
        receipts_max: int = RECEIPTS_MAX,
    ) -> None:
        """`made_by` says what ran a model, by its digest."""
        self._store = store
        self._made_by = made_by
        self._clock = clock
        # The store has one connection, so even its reads take the turn of a write.
        self._runner = runner
        self._receipts_max = receipts_max
        self._owed: dict[PeerId, _Owed] = {}
        # Not on disk yet, so not to be handed in.
        self._unwritten: set[LeaseId] = set()
        self._refused = store.count_refused()
        for stored in store.load():
            self._owed_by(stored.coordinator).put(stored)
        self._batch = Pending()
        # What is written now, or was last.
        self._writing = Pending()
        self._writing.done.set()
        self._work = ParkingLot()
        self._left = ParkingLot()
        self._failure: OutboxError | None = None

    @property
    def is_accepting(self) -> bool:
        """False while there is no room for the receipt of another job: then no job is taken."""
        return self._failure is None and self._count < self._receipts_max

    @property
    def failure(self) -> str:
        """Why nothing is accepted, for `capanode status`; empty if all is well."""
        if self._failure is not None:
            return str(self._failure)
        if self._count >= self._receipts_max:
            return f"{self._count} receipts wait for a coordinator: check that it is reachable"
        return ""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Write until cancelled, then write what is left."""
        try:
            task_status.started()
            while True:
                await self._wait_work()
                if not await self._commit():
                    await trio.sleep(FULL_RETRY_S)
        finally:
            if not self._batch.is_empty:
                await self._commit()

    def add(self, receipt: Signed[Receipt]) -> Pending:
        """Keep a receipt; wait for what is returned to know that it is durable.

        Receipts of nothing are dropped while the outbox is full: they only speed a release up.
        """
        billed = receipt.message
        owed = self._owed_by(billed.coordinator)
        if not billed.amount_nano and not self.is_accepting:
            return self._batch
        # A receipt that is here already stays as it is: a lease ends once.
        if billed.lease_id not in owed.receipts:
            made_by = self._made_by(billed.model_digest)
            self._unwritten.add(billed.lease_id)
            self._put(
                OutboxReceipt(
                    lease_id=billed.lease_id,
                    coordinator=billed.coordinator,
                    receipt=receipt.raw,
                    acceptance=b"",
                    amount_nano=billed.amount_nano,
                    tries=0,
                    due_ms=self._clock.now_ms() + ACCEPTANCE_WAIT_MS,
                    model=made_by.model,
                    device=made_by.device,
                )
            )
        return self._hasten()

    def attach_nowait(self, acceptance: Signed[Acceptance], *, coordinator: PeerId) -> None:
        """The client's countersignature came, so its receipt is due at once. It is dropped while
        the outbox is full: the client hands it in as well."""
        lease_id = acceptance.message.lease_id
        stored = self._owed_by(coordinator).receipts.get(lease_id)
        if stored is not None and self.is_accepting:
            due_ms = min(stored.due_ms, self._clock.now_ms())
            self._put(replace(stored, acceptance=acceptance.raw, due_ms=due_ms))

    def acknowledge(self, stored: OutboxReceipt, *, state: str, paid_nano: int) -> None:
        """The coordinator has paid. If we crash first, it is handed in again, to no effect."""
        if self._forget(stored):
            day = self._clock.now_ms() // DAY_MS
            self._change(acknowledge(stored, state=state, paid_nano=paid_nano, day=day))

    def refuse(self, stored: OutboxReceipt, *, reason: str) -> None:
        """The coordinator will never pay for it."""
        job_id = open_envelope(stored.receipt, Receipt).message.job_id
        log.warning("receipt_refused", job_id=job_id, lease_id=stored.lease_id, reason=reason)
        if self._forget(stored):
            self._refused = min(self._refused + 1, REFUSED_MAX)
            self._change(refuse(stored.lease_id, reason=reason, keep=REFUSED_MAX))

    def postpone(self, stored: OutboxReceipt, *, due_ms: int, state: str = WAITING) -> None:
        """Not yet: the coordinator cannot take it, or has it and waits for the client's word."""
        known = self._owed_by(stored.coordinator).receipts.get(stored.lease_id)
        if known is not None:
            self._put(replace(known, due_ms=due_ms, state=state, tries=known.tries + 1))
            self._left.unpark_all()

    async def wait_due(self, coordinator: PeerId, *, limit: int) -> list[OutboxReceipt]:
        """What to hand in now, the earliest due first; waits until there is something."""
        await trio.lowlevel.checkpoint()
        owed = self._owed_by(coordinator)
        while True:
            now_ms = self._clock.now_ms()
            written = [each for each in owed.receipts.values() if self._is_written(each)]
            due = [stored for stored in written if stored.due_ms <= now_ms]
            if due:
                return heapq.nsmallest(limit, due, key=lambda each: (each.due_ms, each.lease_id))
            wait_ms = min((stored.due_ms - now_ms for stored in written), default=math.inf)
            wait_s = min(wait_ms / 1000, _LOOK_AGAIN_S)
            owed.looks_at_ms = now_ms + 1000 * wait_s
            with trio.move_on_after(wait_s):
                await owed.news.park()

    async def wait_empty(self) -> None:
        """Until every receipt has reached its coordinator, or was refused by it."""
        while any(map(_has_waiting, self._owed.values())):
            await self._left.park()

    async def earnings(self) -> list[Earning]:
        """What is on disk, after what waits for it was written."""
        await self._wait_written()
        return await self._runner.run_write(self._store.earnings)

    async def paid(self) -> PaidTotals:
        """Likewise."""
        await self._wait_written()
        today = self._clock.now_ms() // DAY_MS
        return PaidTotals(
            today_nano=await self._runner.run_write(partial(self._store.paid_since, today)),
            all_nano=await self._runner.run_write(partial(self._store.paid_since, EARLIER)),
        )

    async def _wait_written(self) -> None:
        if self._failure is None:
            await self._writing.done.wait()
            if not self._batch.is_empty:
                await self._hasten().done.wait()

    @property
    def _count(self) -> int:
        return self._refused + sum(len(owed.receipts) for owed in self._owed.values())

    def _owed_by(self, coordinator: PeerId) -> _Owed:
        return self._owed.setdefault(coordinator, _Owed())

    def _is_written(self, stored: OutboxReceipt) -> bool:
        return stored.lease_id not in self._unwritten

    def _put(self, stored: OutboxReceipt) -> None:
        self._note_work()
        self._owed_by(stored.coordinator).put(stored)
        self._batch.puts[stored.lease_id] = stored.coordinator

    def _change(self, change: Change) -> None:
        self._note_work()
        self._batch.changes.append(change)

    def _forget(self, stored: OutboxReceipt) -> bool:
        """False if it is gone already."""
        self._left.unpark_all()
        return self._owed_by(stored.coordinator).receipts.pop(stored.lease_id, None) is not None

    def _note_work(self) -> None:
        """Before the batch grows: its first change starts the writer's clock."""
        if self._batch.is_empty:
            self._work.unpark_all()

    def _hasten(self) -> Pending:
        self._batch.is_urgent = True
        self._work.unpark_all()
        return self._batch

    async def _wait_work(self) -> None:
        """Until a job waits for what is to be written, or it has waited long enough."""
        with trio.CancelScope() as scope:
            while not self._batch.is_urgent:
                if not self._batch.is_empty and scope.deadline == math.inf:
                    scope.deadline = trio.current_time() + WRITTEN_WITHIN_S
                await self._work.park()

    async def _commit(self) -> bool:
        """Make the waiting changes durable even if the caller is cancelled; on failure keep
        them."""
        batch = self._writing = self._batch
        self._batch = Pending()
        # What was acknowledged meanwhile needs no last look.
        changes = [*map(put_receipt, self._still_owed(batch)), *batch.changes]
        try:
            with trio.CancelScope(shield=True):
                await self._runner.run_write(partial(self._store.apply, changes))
        except OutboxError as error:
            log.error("outbox_failed", error=str(error))
            self._failure = batch.error = error
            self._batch.puts = batch.puts | self._batch.puts
            self._batch.changes[:0] = batch.changes
            self._batch.is_urgent = True
        else:
            self._failure = None
            self._unwritten.difference_update(batch.puts)
            for stored in self._still_owed(batch):
                self._owed_by(stored.coordinator).put(stored)
        batch.done.set()
        return batch.error is None

    def _still_owed(self, batch: Pending) -> Iterator[OutboxReceipt]:
        for lease_id, coordinator in batch.puts.items():
            stored = self._owed_by(coordinator).receipts.get(lease_id)
            if stored is not None:
                yield stored


def _has_waiting(owed: _Owed) -> bool:
    return any(stored.state == WAITING for stored in owed.receipts.values())
