"""One batch from its first line to its files. `BatchRun.run` is its life in this process.

Every step leaves something durable that the next process goes on from: the status in the batch's
row, the answers in its log. An answer is in the log before its receipt is signed.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count as count_from
from typing import Any

import structlog
import trio

from coordinator.batches import states
from coordinator.batches.answering import Trials
from coordinator.batches.blobs import BlobReader
from coordinator.batches.buying import open_answers
from coordinator.batches.ending import hand_out
from coordinator.batches.input_file import check_input, read_lines
from coordinator.batches.line_log import LineLog, LineRecord
from coordinator.batches.lines import (
    ENDPOINTS,
    PlannedLine,
    RefusedLine,
    read_line,
)
from coordinator.batches.pieces import Piece, group
from coordinator.batches.records import record_of_answers, record_of_failure
from coordinator.batches.services import BatchServices
from coordinator.buyer.errors import JobFailed
from coordinator.db.filing_rows import BatchStatus, StoredBatch
from coordinator.errors import CoordinatorError
from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import ApiError
from coordinator.gateway.market_side.filing import BatchError
from protocol.errors import Code
from protocol.ids import JobId, derive_ulid

log = structlog.get_logger(__name__)

# Pieces of one batch that run or wait at once; each holds its lines in memory.
_PIECES_MAX = 16
_STORE_EVERY_S = 1.0

_WORDS = {
    Code.STORAGE_FULL: "there is no room for more answers: delete files that you need no more",
    Code.OUT_OF_FUNDS: "the account has no credits left: the batch goes on when it has some",
    Code.UNKNOWN_ACCOUNT: "the account is closed: ask the operator of this market",
    Code.BUDGET_EXCEEDED: "the budget of the API key is spent: the batch goes on when it is raised",
}


class _RevokedError(Exception):
    """The API key that pays for the batch was revoked."""


class BatchRun:
    """`batch` is how far it is; the database may be a second behind."""

    def __init__(self, services: BatchServices, batch: StoredBatch, line_log: LineLog) -> None:
        self.batch = batch
        self._services = services
        self._log = line_log
        self._done: set[int] = set()
        self._appending = trio.Lock()
        self._work = trio.CancelScope()
        self._serials = count_from()
        self._is_stored = True
        self._refused: list[RefusedLine] = []
        self._counted_bytes = 0
        self._trials = Trials(self._buy, self._fail, self._tell_why)

    async def run(self) -> None:
        """Until it has ended; cancelled, it is taken up again by the next process."""
        try:
            await self._change(states.take_up(self.batch))
            content = await self._open_input()
            if content is None:
                return
            try:
                await self._read_log()
                with self._work:
                    if self.batch.status is BatchStatus.VALIDATING:
                        await self._validate(content)
                    if self.batch.status is BatchStatus.IN_PROGRESS:
                        await self._answer_all(content)
                await self._store()
                if self.batch.ended_at_ms is None:
                    await self._write_files(content)
            finally:
                content.close()
        finally:
            self._log.close()
            self._services.files.usage.add(self.batch.account, -self._counted_bytes)
        await self._services.runner.run_read(self._log.delete)

    async def cancel(self) -> None:
        """Its user wants no more of it: what runs is cut, and what is there is handed out."""
        await self._change(states.cancel(self.batch, now_ms=self._now_ms()))
        if self.batch.status is BatchStatus.CANCELLING:
            self._work.cancel()

    # The steps.

    async def _open_input(self) -> BlobReader | None:
        stored = await self._services.files.find_row(self.batch.account, self.batch.input_file_id)
        if stored is not None:
            return await self._services.files.open_row(stored)
        error = BatchError("file_not_found", "the input file is gone", param="input_file_id")
        await self._change(states.fail(self.batch, [error], now_ms=self._now_ms()))
        return None

    async def _read_log(self) -> None:
        """What an earlier process has answered."""
        self.batch = states.uncounted(self.batch)
        for record in await self._services.runner.run_read(self._log.read_heads):
            self._note(record)
        self._take_room()

    async def _validate(self, content: BlobReader) -> None:
        endpoint = self.batch.endpoint
        task = ENDPOINTS[endpoint].task
        total, errors = await self._services.runner.run_read(
            partial(check_input, content, endpoint, task)
        )
        now_ms = self._now_ms()
        if self.batch.status is not BatchStatus.VALIDATING:
            return  # cancelled meanwhile
        if errors:
            await self._change(states.fail(self.batch, errors, now_ms=now_ms))
        else:
            await self._change(states.begin(self.batch, total=total, now_ms=now_ms))

    async def _answer_all(self, content: BlobReader) -> None:
        """Until all lines are answered, the window is over, the user cancels, or the API key is
        revoked."""
        try:
            provider = (await self._payer()).provider
        except _RevokedError:
            return
        left_s = (self.batch.expires_at_ms - self._now_ms()) / 1_000
        places = trio.Semaphore(_PIECES_MAX)
        with trio.move_on_after(max(left_s, 0)):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._store_now_and_then)
                async with trio.open_nursery() as pieces_nursery:
                    pieces = group(self._planned(content, provider))
                    while True:
                        await places.acquire()
                        piece = await self._services.runner.run_read(partial(next, pieces, None))
                        await self._refuse_bad_lines()
                        if piece is None or states.is_stopped(self.batch):
                            break
                        pieces_nursery.start_soon(self._answer, piece, places)
                nursery.cancel_scope.cancel()

    async def _write_files(self, content: BlobReader) -> None:
        if self.batch.status is not BatchStatus.CANCELLING:
            await self._change(states.finalize(self.batch, now_ms=self._now_ms()))
        self.batch = await hand_out(self._services, self.batch, self._log, content)
        self._is_stored = True

    # Its lines.

    def _planned(self, content: BlobReader, provider: Mapping[str, Any]) -> Iterator[PlannedLine]:
        """In a thread. Lines that cannot be bought are kept aside."""
        for number, text in read_lines(content):
            if number not in self._done:
                line = read_line(number, text, self.batch.endpoint, provider)
                if isinstance(line, PlannedLine):
                    yield line
                else:
                    self._refused.append(line)

    async def _refuse_bad_lines(self) -> None:
        refused, self._refused = self._refused, []
        for line in refused:
            await self._keep_failure([(line.number, line.custom_id)], line.error)

    async def _answer(self, piece: Piece, places: trio.Semaphore) -> None:
        try:
            await self._trials.answer(piece)
        except _RevokedError:
            pass  # What is under way goes on: it is paid for.
        finally:
            places.release()

    async def _buy(self, piece: Piece) -> None:
        """Raises JobFailed, ApiError."""
        async with self._services.places.place(self.batch.account):
            await self._buy_now(piece)

    async def _buy_now(self, piece: Piece) -> None:
        if not await self._services.files.has_room(self.batch.account):
            raise JobFailed("there is no room for answers", code=Code.STORAGE_FULL)
        caller = await self._payer()
        orders = piece.orders
        job_ids = [self._next_job_id() for _ in orders]
        async with open_answers(self._services.market, caller, orders, job_ids) as choices:
            # Shielded: what is left here is signed for, also by a process that is stopped.
            with trio.CancelScope(shield=True):
                created_s = self._now_ms() // 1_000
                record = await self._services.runner.run_read(
                    partial(record_of_answers, self.batch.id, piece, choices, job_ids, created_s)
                )
                await self._keep(record)

    async def _payer(self) -> Caller:
        """Who pays. Raises _RevokedError: then no line is begun any more."""
        caller = await self._services.callers.caller_of(self.batch.api_key_id)
        if caller is None:
            await self._change(states.stop(self.batch))
            raise _RevokedError
        return caller

    async def _fail(self, piece: Piece, error: ApiError) -> None:
        await self._keep_failure([(line.number, line.custom_id) for line in piece.lines], error)

    async def _keep_failure(self, lines: Sequence[tuple[int, str]], error: ApiError) -> None:
        await self._keep(record_of_failure(self.batch.id, self.batch.endpoint, lines, error))

    async def _keep(self, record: LineRecord) -> None:
        """Durable, before anything else follows from it."""
        async with self._appending:
            await self._services.runner.run_read(partial(self._log.append, record))
            self._note(record)
            self._take_room()

    def _note(self, record: LineRecord) -> None:
        self._done.update(record.lines)
        self.batch = states.count(self.batch, record)
        self._is_stored = False

    def _take_room(self) -> None:
        """The log counts as its account's until the files are there that are made of it."""
        size, self._counted_bytes = self._log.size - self._counted_bytes, self._log.size
        self._services.files.usage.add(self.batch.account, size)

    def _tell_why(self, code: Code | None) -> None:
        """What the batch waits for, if its user can do something about it."""
        if states.is_stopped(self.batch):
            return
        errors = [] if code is None else [BatchError(code.value, _WORDS[code])]
        changed = states.with_errors(self.batch, errors)
        if changed != self.batch:
            self.batch, self._is_stored = changed, False

    def _next_job_id(self) -> JobId:
        """Another one for each try, also of a process that takes the batch up later."""
        serial = next(self._serials)
        return JobId(derive_ulid(self.batch.id, f"batch/{self.batch.takes}/{serial}"))

    # Its row.

    async def _change(self, changed: StoredBatch) -> None:
        if changed != self.batch:
            self.batch, self._is_stored = changed, False
            await self._store()

    async def _store(self) -> None:
        if not self._is_stored:
            self._is_stored = True
            await self._services.rows.store_batch(self.batch)

    async def _store_now_and_then(self) -> None:
        while True:
            await trio.sleep(_STORE_EVERY_S)
            try:
                await self._store()
            except CoordinatorError as error:
                self._is_stored = False
                log.error("batch_not_stored", batch=self.batch.id, error=str(error))

    def _now_ms(self) -> int:
        return self._services.clock.now_ms()
