"""Receipts that the coordinator has not acknowledged yet. They are the node's money: each is on
disk before the client sees it, and stays there through restarts until it is handed in.

Writes of many jobs share one transaction, which one task makes durable in a thread; nothing of this
is on the path of a token. Handing in is `capanode.control`; the SQL is `capanode.outbox_store`.
"""

from dataclasses import dataclass, field
from functools import partial

import structlog
import trio

from capanode.errors import OutboxError
from capanode.outbox_store import (
    WAITING,
    Change,
    Earning,
    OutboxReceipt,
    OutboxStore,
    acknowledge,
    attach_acceptance,
    insert_receipt,
    postpone,
    prune_refused,
    refuse,
)
from protocol.clock import Clock
from protocol.envelope import Signed, open_envelope
from protocol.ids import PeerId
from protocol.messages import Acceptance, Receipt
from protocol.programs.runners import Runner

log = structlog.get_logger(__name__)

# At 2 KB each, 20 MB on disk: a day without a coordinator at one job in ten seconds.
RECEIPTS_MAX = 10_000
# Evidence for an argument, not an archive.
REFUSED_MAX = 1_000

# A client countersigns within a round trip. Waiting this long saves handing in twice.
ACCEPTANCE_WAIT_MS = 2_000

# A full disk is looked at again this often; meanwhile the node takes no work.
FULL_RETRY_S = 5.0

# The flusher looks again at least this often, should the wall clock have been set back.
_LOOK_AGAIN_S = 30.0


@dataclass(slots=True)
class Pending:
    """Changes that become durable together."""

    changes: list[Change] = field(default_factory=list)
    added: int = 0
    done: trio.Event = field(default_factory=trio.Event)
    error: OutboxError | None = None

    async def wait(self) -> None:
        """Returns when they are durable.

        Raises OutboxError if they are not; they are kept in memory then and tried again.
        """
        await self.done.wait()
        if self.error is not None:
            raise self.error


class Outbox:
    """See the module docstring. `run` must be running; it writes what is left when it ends."""

    def __init__(
        self,
        store: OutboxStore,
        *,
        clock: Clock,
        runner: Runner,
        receipts_max: int = RECEIPTS_MAX,
    ) -> None:
        self._store = store
        self._clock = clock
        # The store has one connection, so even its reads take the turn of a write.
        self._runner = runner
        self._receipts_max = receipts_max
        self._count = store.count()
        self._batch = Pending()
        self._work = trio.Event()
        self._news = trio.Event()
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
                await self._work.wait()
                if not await self._commit():
                    await trio.sleep(FULL_RETRY_S)
        finally:
            if self._batch.changes:
                await self._commit()

    def add(self, receipt: Signed[Receipt]) -> Pending:
        """Keep a receipt; wait for what is returned to know that it is durable.

        Receipts of nothing are dropped while the outbox is full: they only speed a release up.
        """
        billed = receipt.message
        if not billed.amount_nano and not self.is_accepting:
            return self._batch
        self._count += 1
        self._batch.added += 1
        return self._change(
            insert_receipt(
                OutboxReceipt(
                    lease_id=billed.lease_id,
                    coordinator=billed.coordinator,
                    receipt=receipt.raw,
                    acceptance=b"",
                    amount_nano=billed.amount_nano,
                    tries=0,
                    due_ms=self._clock.now_ms() + ACCEPTANCE_WAIT_MS,
                )
            )
        )

    def attach_nowait(self, acceptance: Signed[Acceptance]) -> None:
        """The client's countersignature came. It is dropped while the outbox is full: the client
        hands it in as well."""
        if not self.is_accepting:
            return
        now_ms = self._clock.now_ms()
        self._change(attach_acceptance(acceptance.message.lease_id, acceptance.raw, now_ms=now_ms))

    async def acknowledge(self, stored: OutboxReceipt, *, state: str) -> None:
        """The coordinator holds it now. If we crash first, it is handed in again, to no effect."""
        await self._change(acknowledge(stored, state=state)).wait()

    async def refuse(self, stored: OutboxReceipt, *, reason: str) -> None:
        """The coordinator will never pay for it."""
        job_id = open_envelope(stored.receipt, Receipt).message.job_id
        log.warning("receipt_refused", job_id=job_id, lease_id=stored.lease_id, reason=reason)
        self._change(refuse(stored.lease_id, reason=reason))
        await self._change(prune_refused(keep=REFUSED_MAX)).wait()

    async def postpone(self, stored: OutboxReceipt, *, due_ms: int, state: str = WAITING) -> None:
        """Not yet: the coordinator cannot take it, or has it and waits for the client's word."""
        await self._change(postpone(stored.lease_id, due_ms=due_ms, state=state)).wait()

    async def wait_due(self, coordinator: PeerId, *, limit: int) -> list[OutboxReceipt]:
        """What to hand in now; waits until there is something. Raises OutboxError."""
        while True:
            news = self._news
            find_due = partial(self._store.due, coordinator, limit=limit)
            waiting = await self._runner.run_write(find_due)
            now_ms = self._clock.now_ms()
            due = [stored for stored in waiting if stored.due_ms <= now_ms]
            if due:
                return due
            wait_s = (waiting[0].due_ms - now_ms) / 1000 if waiting else _LOOK_AGAIN_S
            with trio.move_on_after(min(wait_s, _LOOK_AGAIN_S)):
                await news.wait()

    async def wait_empty(self) -> None:
        """Until every receipt has reached its coordinator, or was refused by it."""
        while True:
            news = self._news
            earnings = await self.earnings()
            if not any(earning.state == WAITING for earning in earnings):
                return
            await news.wait()

    async def earnings(self) -> list[Earning]:
        return await self._runner.run_write(self._store.earnings)

    def _change(self, change: Change) -> Pending:
        self._batch.changes.append(change)
        self._work.set()
        return self._batch

    async def _commit(self) -> bool:
        """Make the waiting changes durable even if the caller is cancelled; on failure keep
        them."""
        batch, self._batch = self._batch, Pending()
        self._work = trio.Event()
        try:
            with trio.CancelScope(shield=True):
                count = await self._runner.run_write(partial(self._store.apply, batch.changes))
        except OutboxError as error:
            log.error("outbox_failed", error=str(error))
            self._failure = batch.error = error
            self._batch.changes[:0] = batch.changes
            self._batch.added += batch.added
            self._work.set()
        else:
            self._failure = None
            self._count = count + self._batch.added
            self._news.set()
            self._news = trio.Event()
        batch.done.set()
        return batch.error is None
