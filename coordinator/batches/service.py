"""Files and batches as the gateway asks for them: the one owner of all batches that run."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import structlog
import trio

from coordinator.batches import states
from coordinator.batches.blobs import BlobReader, SealedFolder
from coordinator.batches.files import FileService, FileUpload
from coordinator.batches.line_log import LineLog
from coordinator.batches.lines import ENDPOINTS
from coordinator.batches.needs import CallerFinder, FilingRows, Leftovers
from coordinator.batches.run import BatchRun
from coordinator.batches.services import BatchServices
from coordinator.batches.turns_by_account import AccountPlaces
from coordinator.batches.usage import DEFAULT_FILE_BOUNDS, FileBounds
from coordinator.db.filing_rows import Page, StoredBatch
from coordinator.errors import CoordinatorError
from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import ApiError, Problem, error_of, invalid
from coordinator.gateway.market_side.filing import BatchInfo, BatchRequest, FileInfo, ListPart
from coordinator.gateway.market_side.market import GatewayMarket
from coordinator.ledger.accounts import account_of
from protocol.errors import Code, leaves
from protocol.programs.runtime import Runtime

log = structlog.get_logger(__name__)

# OpenAI's only completion window.
WINDOW_S = 24 * 3_600
# A batch whose disk or database failed is tried again.
_AGAIN_AFTER_S = 30.0


@dataclass(frozen=True, slots=True)
class BatchBounds:
    """`jobs_max` is how many jobs of batches are bought at once, over all accounts."""

    files: FileBounds = DEFAULT_FILE_BOUNDS
    jobs_max: int = 64
    open_per_account_max: int = 20
    window_s: int = WINDOW_S


class BatchService:
    """A `Filing`. `run` must be running before the first call."""

    def __init__(
        self,
        rows: FilingRows,
        folder: SealedFolder,
        market: GatewayMarket,
        leftovers: Leftovers,
        callers: CallerFinder,
        runtime: Runtime,
        *,
        bounds: BatchBounds | None = None,
    ) -> None:
        self._bounds = bounds or BatchBounds()
        self._rows = rows
        self._folder = folder
        self._leftovers = leftovers
        self._runner = runtime.runner
        self._clock = runtime.clock
        self.files = FileService(
            rows,
            folder,
            runtime.runner,
            clock=runtime.clock,
            entropy=runtime.entropy,
            bounds=self._bounds.files,
        )
        self._services = BatchServices(
            self.files,
            rows,
            market,
            callers,
            AccountPlaces(self._bounds.jobs_max),
            runtime.runner,
            runtime.clock,
        )
        self._runs: dict[str, BatchRun] = {}
        self._nursery: trio.Nursery | None = None

    @property
    def file_bytes_max(self) -> int:
        return self._bounds.files.file_bytes_max

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Take up the batches that an earlier process left, and run all, until cancelled."""
        await self.files.prepare()
        open_batches = await self._rows.open_batches()
        kept = {batch.id for batch in open_batches}
        await self._runner.run_read(partial(self._prepare_logs, kept))
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            try:
                await nursery.start(self.files.run)
                waiting = [self._make_run(batch) for batch in open_batches]
                task_status.started()
                # A coordinator elsewhere may be away: new batches need not wait for it.
                await self._disown(open_batches)
                for run in waiting:
                    nursery.start_soon(self._run, run)
                await trio.sleep_forever()
            finally:
                # Before the nursery closes: a closed one refuses new tasks with a crash.
                self._nursery = None

    # Files.

    async def begin_upload(self, caller: Caller) -> FileUpload:
        return await self.files.begin_upload(caller)

    async def finish_upload(
        self,
        caller: Caller,
        upload: FileUpload,
        *,
        filename: str,
        purpose: str,
        lifetime_s: int | None,
    ) -> FileInfo:
        return await self.files.finish_upload(
            caller, upload, filename=filename, purpose=purpose, lifetime_s=lifetime_s
        )

    async def abandon_upload(self, upload: FileUpload) -> None:
        await self.files.abandon_upload(upload)

    async def find_file(self, caller: Caller, file_id: str) -> FileInfo | None:
        return await self.files.find_file(caller, file_id)

    async def list_files(
        self, caller: Caller, part: ListPart, purpose: str | None
    ) -> Sequence[FileInfo]:
        return await self.files.list_files(caller, part, purpose)

    async def open_file(self, caller: Caller, file_id: str) -> BlobReader | None:
        return await self.files.open_file(caller, file_id)

    async def delete_file(self, caller: Caller, file_id: str) -> bool:
        """Raises ApiError while a batch reads it."""
        stored = await self.files.find_row(account_of(caller.owner), file_id)
        if stored is None:
            return False
        if any(run.batch.input_file_id == file_id for run in self._runs.values()):
            message = "a batch still reads this file: cancel it, or wait for its end"
            raise invalid(message, "file_id", code="file_in_use")
        return await self.files.delete_row(stored)

    # Batches.

    async def create_batch(self, caller: Caller, ask: BatchRequest) -> BatchInfo:
        """Durable when this returns. Raises ApiError."""
        account = account_of(caller.owner)
        if ask.endpoint not in ENDPOINTS:
            raise invalid(f"endpoint is one of {', '.join(ENDPOINTS)}", "endpoint")
        if await self.files.find_row(account, ask.input_file_id) is None:
            message = "no file of yours has this id"
            raise ApiError(Problem(404, message, code="not_found", param="input_file_id"))
        running = sum(run.batch.account == account for run in self._runs.values())
        if running >= self._bounds.open_per_account_max:
            raise error_of(Code.RATE_LIMITED, f"{running} batches of yours are open already")
        now_ms = self._clock.now_ms()
        batch = StoredBatch(
            id=self.files.new_id(),
            account=account,
            api_key_id=caller.key_id,
            endpoint=ask.endpoint,
            input_file_id=ask.input_file_id,
            output_lifetime_s=ask.output_lifetime_s,
            labels=json.dumps(dict(ask.labels)),
            created_at_ms=now_ms,
            expires_at_ms=now_ms + 1_000 * self._bounds.window_s,
        )
        await self._rows.add_batch(batch)
        self._start(batch)
        return states.info_of_batch(batch)

    async def find_batch(self, caller: Caller, batch_id: str) -> BatchInfo | None:
        batch = await self._find(caller, batch_id)
        return None if batch is None else states.info_of_batch(batch)

    async def list_batches(self, caller: Caller, part: ListPart) -> Sequence[BatchInfo]:
        page = Page(part.limit, part.after, part.is_ascending)
        account = account_of(caller.owner)
        rows = await self._rows.list_batches(account, page)
        return [states.info_of_batch(self._newest(row)) for row in rows]

    async def cancel_batch(self, caller: Caller, batch_id: str) -> BatchInfo | None:
        if await self._find(caller, batch_id) is None:
            return None
        run = self._runs.get(batch_id)
        if run is not None:
            await run.cancel()
            return states.info_of_batch(run.batch)
        return await self.find_batch(caller, batch_id)

    # Below: what the above share.

    async def _find(self, caller: Caller, batch_id: str) -> StoredBatch | None:
        batch = await self._rows.find_batch(batch_id)
        if batch is None or batch.account != account_of(caller.owner):
            return None
        return self._newest(batch)

    def _newest(self, batch: StoredBatch) -> StoredBatch:
        run = self._runs.get(batch.id)
        return batch if run is None else run.batch

    def _start(self, batch: StoredBatch) -> None:
        if self._nursery is None:
            return  # the next process takes it up
        self._nursery.start_soon(self._run, self._make_run(batch))

    def _make_run(self, batch: StoredBatch) -> BatchRun:
        run = self._runs[batch.id] = BatchRun(self._services, batch, self._log_of(batch.id))
        return run

    async def _run(self, run: BatchRun) -> None:
        """The boundary of one batch: what fails here is tried again, and ends no other."""
        batch_id = run.batch.id
        try:
            await run.run()
        except* CoordinatorError as group:
            errors = ", ".join(str(error) for error in leaves(group))
            log.error("batch_interrupted", batch=batch_id, errors=errors)
            await trio.sleep(_AGAIN_AFTER_S)
        stored = await self._rows.find_batch(batch_id)
        del self._runs[batch_id]
        if stored is not None and stored.ended_at_ms is None:
            self._start(stored)

    async def _disown(self, open_batches: Sequence[StoredBatch]) -> None:
        """Sign for what jobs of an earlier process were cut off with, before they run again."""
        answered: set[str] = set()
        for batch in open_batches:
            line_log = self._log_of(batch.id)
            heads = await self._runner.run_read(line_log.read_heads)
            line_log.close()
            answered.update(job_id for record in heads for job_id in record.job_ids)
        await self._leftovers.disown(open_batches, answered)

    def _log_of(self, batch_id: str) -> LineLog:
        return LineLog(self._folder.folder / "logs" / batch_id, self._folder.sealer(batch_id))

    def _prepare_logs(self, kept: set[str]) -> None:
        folder = self._folder.folder / "logs"
        folder.mkdir(exist_ok=True, mode=0o700)
        for path in folder.iterdir():
            if path.name not in kept:
                path.unlink()
