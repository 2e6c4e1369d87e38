"""The files of HTTP users: taken in, found, deleted, and dropped when their time is over.

What may be kept is bounded: the size of a file, the uploads at once, and the bytes (`usage`).
"""

from collections.abc import Sequence
from functools import partial

import structlog
import trio

from coordinator.batches.blobs import BlobReader, BlobWriter, SealedFolder
from coordinator.batches.errors import FilesFullError
from coordinator.batches.needs import FilingRows
from coordinator.batches.usage import FileBounds, Usage
from coordinator.db.filing_rows import Page, StoredFile
from coordinator.errors import StorageError
from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import error_of
from coordinator.gateway.market_side.filing import FileInfo, ListPart
from coordinator.ledger.accounts import AccountId, account_of
from protocol.clock import Clock, Entropy
from protocol.errors import Code
from protocol.ids import ULID_ENTROPY_BYTES, new_ulid
from protocol.limits import MIB
from protocol.programs.runners import Runner

log = structlog.get_logger(__name__)

_SWEEP_EVERY_S = 60.0
_EXPIRED_AT_ONCE = 100
_RETRY_AFTER_MS = 2_000
# More than all answers that can come at once.
_FREE_BYTES_MIN = 256 * MIB


class FileUpload:
    """An `Upload`. `write` blocks."""

    def __init__(
        self, file_id: str, account: AccountId, writer: BlobWriter, usage: Usage, bytes_max: int
    ) -> None:
        self.file_id = file_id
        self.account = account
        self.writer = writer
        self.is_over = False
        self._usage = usage
        self._bytes_max = bytes_max

    def write(self, data: bytes) -> None:
        if self.writer.size + len(data) > self._bytes_max:
            raise error_of(Code.INPUT_TOO_LARGE, f"a file has {self._bytes_max} bytes at most")
        self._usage.grow(self.account, len(data))
        try:
            self.writer.write(data)
        except FilesFullError as error:
            raise error_of(error.code, "") from error


class FileService:
    """See the module docstring. `prepare` before the first call; `run` sweeps."""

    def __init__(
        self,
        rows: FilingRows,
        folder: SealedFolder,
        runner: Runner,
        *,
        clock: Clock,
        entropy: Entropy,
        bounds: FileBounds,
    ) -> None:
        self.bounds = bounds
        self.usage = Usage(bounds)
        self.folder = folder
        self._rows = rows
        self._runner = runner
        self._clock = clock
        self._entropy = entropy
        self._uploads: dict[AccountId, int] = {}

    async def prepare(self) -> None:
        """Count what is there, and delete what an earlier process did not finish."""
        self.usage.set(await self._rows.bytes_by_account())
        known = await self._rows.file_ids()
        await self._runner.run_read(partial(_prepare, self.folder, known))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Drop the files whose time is over, until cancelled."""
        task_status.started()
        while True:
            try:
                while await self._drop_expired() == _EXPIRED_AT_ONCE:
                    pass
            except StorageError as error:
                log.error("files_sweep_failed", error=str(error))
            await trio.sleep(_SWEEP_EVERY_S)

    def new_id(self) -> str:
        return new_ulid(self._clock.now_ms(), self._entropy(ULID_ENTROPY_BYTES))

    async def begin_upload(self, caller: Caller) -> FileUpload:
        """Raises ApiError."""
        account, running = _account(caller), sum(self._uploads.values())
        is_full = self._uploads.get(account, 0) >= self.bounds.uploads_per_account_max
        if is_full or running >= self.bounds.uploads_max:
            raise error_of(Code.RATE_LIMITED, "", retry_after_ms=_RETRY_AFTER_MS).but(
                message="too many files are being uploaded at once: try again shortly"
            )
        self._uploads[account] = self._uploads.get(account, 0) + 1
        file_id = self.new_id()
        try:
            writer = await self._runner.run_read(partial(self.folder.create, file_id))
        except BaseException:
            # Nothing begins, so that nothing will end.
            self._end_upload(account)
            raise
        return FileUpload(file_id, account, writer, self.usage, self.bounds.file_bytes_max)

    async def finish_upload(
        self,
        caller: Caller,
        upload: FileUpload,
        *,
        filename: str,
        purpose: str,
        lifetime_s: int | None,
    ) -> FileInfo:
        """Raises ApiError."""
        await self._runner.run_read(partial(_finish, self.folder, upload.writer))
        stored = self.row(
            upload.file_id,
            _account(caller),
            filename=filename,
            purpose=purpose,
            size=upload.writer.size,
            lifetime_s=lifetime_s,
        )
        await self._rows.add_file(stored)
        upload.is_over = True
        self._end_upload(upload.account)
        upload.writer.close()
        return info_of(stored)

    async def abandon_upload(self, upload: FileUpload) -> None:
        if upload.is_over:
            return
        upload.is_over = True
        self._end_upload(upload.account)
        self.usage.add(upload.account, -upload.writer.size)
        upload.writer.close()
        await self._runner.run_read(partial(self.folder.delete, upload.file_id))

    def row(
        self,
        file_id: str,
        account: AccountId,
        *,
        filename: str,
        purpose: str,
        size: int,
        lifetime_s: int | None,
    ) -> StoredFile:
        now_ms = self._clock.now_ms()
        kept_s = self.bounds.lifetime_s if lifetime_s is None else lifetime_s
        return StoredFile(
            file_id, account, filename, purpose, size, now_ms, now_ms + 1_000 * kept_s
        )

    async def has_room(self, account: AccountId) -> bool:
        """Whether answers can be kept: what is bought and finds no room would be paid and lost."""
        if not self.usage.has_room(account):
            return False
        free = await self._runner.run_read(self.folder.free_bytes)
        return free >= _FREE_BYTES_MIN

    async def find_file(self, caller: Caller, file_id: str) -> FileInfo | None:
        stored = await self.find_row(_account(caller), file_id)
        return None if stored is None else info_of(stored)

    async def find_row(self, account: AccountId, file_id: str) -> StoredFile | None:
        """The account's own, unless its time is over."""
        stored = await self._rows.find_file(file_id)
        if stored is None or stored.account != account:
            return None
        return stored if stored.expires_at_ms > self._clock.now_ms() else None

    async def list_files(
        self, caller: Caller, part: ListPart, purpose: str | None
    ) -> Sequence[FileInfo]:
        page = Page(part.limit, part.after, part.is_ascending)
        rows = await self._rows.list_files(_account(caller), page, purpose=purpose)
        return [info_of(row) for row in rows]

    async def open_file(self, caller: Caller, file_id: str) -> BlobReader | None:
        stored = await self.find_row(_account(caller), file_id)
        return None if stored is None else await self.open_row(stored)

    async def open_row(self, stored: StoredFile) -> BlobReader:
        """Raises DamagedFileError."""
        return await self._runner.run_read(partial(self.folder.open, stored.id, stored.bytes))

    async def delete_row(self, stored: StoredFile) -> bool:
        """The row goes first: a file without one is deleted by the next start."""
        if not await self._rows.delete_file(stored.id):
            return False
        self.usage.add(stored.account, -stored.bytes)
        await self._runner.run_read(partial(self.folder.delete, stored.id))
        return True

    async def _drop_expired(self) -> int:
        now_ms = self._clock.now_ms()
        expired = await self._rows.expired_files(now_ms=now_ms, limit=_EXPIRED_AT_ONCE)
        for stored in expired:
            await self.delete_row(stored)
        return len(expired)

    def _end_upload(self, account: AccountId) -> None:
        self._uploads[account] -= 1
        if not self._uploads[account]:
            del self._uploads[account]


def info_of(stored: StoredFile) -> FileInfo:
    return FileInfo(
        stored.id,
        stored.filename,
        stored.purpose,
        stored.bytes,
        stored.created_at_ms,
        stored.expires_at_ms,
    )


def _account(caller: Caller) -> AccountId:
    return account_of(caller.owner)


def _prepare(folder: SealedFolder, known: set[str]) -> None:
    folder.prepare()
    folder.delete_all_but(known)


def _finish(folder: SealedFolder, writer: BlobWriter) -> None:
    writer.finish()
    folder.make_names_durable()
