"""The one way into the books while the coordinator runs: group commit.

A submitter queues its posting and sleeps. One task takes everything that queued while the last
commit ran, and commits it in one transaction with one fdatasync. There is no timer: a lone posting
is committed at once, and batches grow with the load.

Balances are read inside that transaction, so other processes may post to the same database.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import outcome
import structlog
import trio

from coordinator.db.bulk import Record, run_records
from coordinator.db.engine import Connection, Database
from coordinator.db.transfers import list_due_holds, load_book, store_applied
from coordinator.errors import (
    LedgerBusyError,
    LedgerClosedError,
    LedgerError,
    StorageBusyError,
    StorageError,
    StorageFullError,
)
from coordinator.ledger.machine import Chain, ChainResult, apply_chains
from coordinator.ledger.postings import expire
from coordinator.ledger.refusals import HoldEndedError, refusal
from coordinator.ledger.transfers import Result, Transfer
from protocol.clock import Clock

log = structlog.get_logger(__name__)

# Past this the commit takes longer than the fdatasync that it saves.
BATCH_MAX = 1_000

# Ten full batches are about half a second of work: longer, and the client had better hear "busy".
_QUEUE_MAX = 10 * BATCH_MAX


_Answer = outcome.Value[object] | outcome.Error


@dataclass(frozen=True, slots=True)
class Posting:
    """A chain, and the rows that are written with it: in the same transaction, and only if the
    chain is new and happens. An empty chain always happens: its rows share the group commit."""

    chain: Chain
    records: tuple[Record, ...] = ()


@dataclass(eq=False, slots=True)
class _Waiting:
    """A posting and the task that sleeps on it. `is_taken` once it is part of a commit."""

    posting: Posting
    task: trio.lowlevel.Task
    is_taken: bool = False


class LedgerWriter:
    """Group commit over one database. `run` must be running for `submit` to work."""

    def __init__(self, database: Database, clock: Clock, *, batch_max: int = BATCH_MAX) -> None:
        self._batch_max = batch_max
        self._database = database
        self._clock = clock
        self._is_running = False
        # A dict as an ordered set: a cancelled submitter leaves in constant time.
        self._queue: dict[_Waiting, None] = {}
        self._idle = trio.lowlevel.ParkingLot()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Commit what is submitted, until cancelled. A commit that has begun is completed."""
        self._is_running = True
        task_status.started()
        try:
            while True:
                # Commits are not cancelled: without this, a busy ledger could not be shut down.
                await trio.lowlevel.checkpoint_if_cancelled()
                while not self._queue:
                    await self._idle.park()
                batch = list(self._queue)[: self._batch_max]
                for waiting in batch:
                    del self._queue[waiting]
                    waiting.is_taken = True
                await self._commit(batch)
        finally:
            self._is_running = False
            for waiting in self._queue:
                _wake(waiting, outcome.Error(_closed()))
            self._queue.clear()

    async def submit(self, chain: Chain, records: tuple[Record, ...] = ()) -> Result:
        """Post durably. Returns CREATED, or EXISTS for a retry of the same chain.

        Once the posting is part of a commit, cancellation waits for the answer: a caller that sees
        Cancelled from here knows that nothing was posted.

        Raises PostingRefusedError and its kin when the rules forbid it, StorageError and its kin
        when the database fails, LedgerBusyError or LedgerClosedError when it was not tried.
        """
        if not self._is_running:
            raise _closed()
        if len(self._queue) >= _QUEUE_MAX:
            raise LedgerBusyError("the ledger is overloaded: try again in a second")
        waiting = _Waiting(Posting(chain, records), trio.lowlevel.current_task())
        self._queue[waiting] = None
        self._idle.unpark()

        def abort(_raise_cancel: object) -> trio.lowlevel.Abort:
            if waiting.is_taken:
                return trio.lowlevel.Abort.FAILED
            del self._queue[waiting]
            return trio.lowlevel.Abort.SUCCEEDED

        result: ChainResult = await trio.lowlevel.wait_task_rescheduled(abort)
        if not result.result.is_success:
            raise refusal(chain, result)
        return result.result

    async def expire_holds(
        self,
        records_of: Callable[[Transfer], Awaitable[tuple[Record, ...]]] | None = None,
        *,
        is_kept: Callable[[Transfer], bool] = lambda hold: False,
    ) -> list[Transfer]:
        """Give back every hold whose timeout has come, oldest first; returns those that this call
        ended. `records_of` says what else to write with each, `is_kept` which ones stay due. Call
        again while it returns any; a hold that finds no room in the books stays due too."""
        # One batch, so that a sweep after an outage does not starve the market.
        limit = self._batch_max
        due = await self._database.read(list_due_holds, self._clock.now_ms(), limit=limit)
        expired: list[Transfer] = []

        async def expire_one(hold: Transfer) -> None:
            try:
                await self.submit(expire(hold), await records_of(hold) if records_of else ())
            except HoldEndedError:
                return  # a receipt came between
            except (StorageError, LedgerError) as error:
                # It is still due when the next sweep comes, which may find the database mended.
                log.warning("hold_not_expired", hold_id=hold.id, error=str(error))
                return
            expired.append(hold)

        async with trio.open_nursery() as nursery:
            for hold in due:
                if not is_kept(hold):
                    nursery.start_soon(expire_one, hold)
        return expired

    async def _commit(self, batch: list[_Waiting]) -> None:
        """Commit a batch and wake its submitters; never leaves one of them asleep."""
        answers: list[_Answer] = []
        try:
            # A transaction that has begun is not cancelled, and before that nothing is posted.
            answers = await self._write(batch)
        finally:
            missing = len(batch) - len(answers)
            answers += [outcome.Error(_closed()) for _ in range(missing)]
            for waiting, answer in zip(batch, answers, strict=True):
                _wake(waiting, answer)

    async def _write(self, batch: list[_Waiting]) -> list[_Answer]:
        postings = [waiting.posting for waiting in batch]
        try:
            results = await self._database.write(post, postings, now_ms=self._clock.now_ms())
        except (StorageFullError, StorageBusyError) as error:
            # The next posting may find room; this batch is told at once.
            return [_failed(error) for _ in batch]
        except StorageError as error:
            if len(batch) == 1:
                return [_failed(error)]
        else:
            return [outcome.Value(result) for result in results]
        # One posting's rows broke a constraint and took the batch with it: find out whose. It is
        # shielded, so that shutting down cannot separate a submitter from its answer.
        answers = []
        with trio.CancelScope(shield=True):
            for waiting in batch:
                answers += await self._write([waiting])
        return answers


def post(conn: Connection, postings: Sequence[Posting], *, now_ms: int) -> list[ChainResult]:
    """Apply postings inside the caller's transaction: for the writer, and for programs without one.

    Raises StorageError and its kin; the transaction must then be rolled back.
    """
    chains = [posting.chain for posting in postings]
    applied = apply_chains(load_book(conn, chains), chains, now_ms=now_ms)
    store_applied(conn, applied, now_ms=now_ms)
    run_records(
        conn,
        [
            record
            for posting, answer in zip(postings, applied.results, strict=True)
            if answer.result is Result.CREATED
            for record in posting.records
        ],
    )
    return applied.results


def post_one(
    conn: Connection, chain: Chain, records: tuple[Record, ...] = (), *, now_ms: int
) -> Result:
    """`post` of a single chain. Raises PostingRefusedError and its kin if it did not happen."""
    (result,) = post(conn, [Posting(chain, records)], now_ms=now_ms)
    if not result.result.is_success:
        raise refusal(chain, result)
    return result.result


def _wake(waiting: _Waiting, answer: _Answer) -> None:
    trio.lowlevel.reschedule(waiting.task, answer)


def _failed(error: StorageError) -> outcome.Error:
    """One exception per submitter: a shared one would collect all their tracebacks."""
    copy = type(error)(*error.args)
    copy.__cause__ = error.__cause__
    return outcome.Error(copy)


def _closed() -> LedgerError:
    return LedgerClosedError("the ledger is shutting down: nothing was posted; try again later")
