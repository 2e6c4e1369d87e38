"""The rows of files and batches in a coordinator's books, and its leases of batches."""

from collections.abc import Container, Sequence

import structlog

from coordinator.batches.needs import CallerFinder
from coordinator.buyer.leaser import Leaser
from coordinator.db import batches, files
from coordinator.db.engine import Connection, Database
from coordinator.db.filing_rows import Page, StoredBatch, StoredFile
from coordinator.db.jobs import find_jobs
from coordinator.db.leases import list_open_leases
from coordinator.ledger.accounts import AccountId
from protocol.clock import Clock
from protocol.countersigning import nothing_of
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import RemoteProtocolError
from protocol.messages import JobRequest, Lease

log = structlog.get_logger(__name__)

_TIME_CHARS = 10


class BookFiling:
    """A `FilingRows`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def bytes_by_account(self) -> dict[str, int]:
        return await self._database.read(files.bytes_by_account)

    async def file_ids(self) -> set[str]:
        return await self._database.read(files.list_file_ids)

    async def add_file(self, stored: StoredFile) -> None:
        await self._database.write(files.insert_file, stored)

    async def find_file(self, file_id: str) -> StoredFile | None:
        return await self._database.read(files.find_file, file_id)

    async def list_files(
        self, account: AccountId, page: Page, *, purpose: str | None
    ) -> list[StoredFile]:
        return await self._database.read(files.list_files, account, page, purpose=purpose)

    async def expired_files(self, *, now_ms: int, limit: int) -> list[StoredFile]:
        return await self._database.read(files.list_expired_files, now_ms=now_ms, limit=limit)

    async def delete_file(self, file_id: str) -> bool:
        return await self._database.write(files.delete_file, file_id)

    async def add_batch(self, batch: StoredBatch) -> None:
        await self._database.write(batches.insert_batch, batch)

    async def store_batch(self, batch: StoredBatch) -> None:
        await self._database.write(batches.store_batch, batch)

    async def end_batch(self, batch: StoredBatch, files: Sequence[StoredFile]) -> None:
        await self._database.write(_store_end, batch, files)

    async def find_batch(self, batch_id: str) -> StoredBatch | None:
        return await self._database.read(batches.find_batch, batch_id)

    async def list_batches(self, account: AccountId, page: Page) -> list[StoredBatch]:
        return await self._database.read(batches.list_batches, account, page)

    async def open_batches(self) -> list[StoredBatch]:
        return await self._database.read(batches.list_open_batches)


class BookLeftovers:
    """A `Leftovers`."""

    def __init__(
        self, database: Database, leaser: Leaser, callers: CallerFinder, clock: Clock
    ) -> None:
        self._database = database
        self._leaser = leaser
        self._callers = callers
        self._clock = clock

    async def disown(self, batches: Sequence[StoredBatch], answered: Container[str]) -> None:
        times = {batch.id[:_TIME_CHARS] for batch in batches}
        for lease, api_key_id in await self._database.read(_batch_leases):
            job_id = lease.message.job_id
            if job_id in answered or job_id[:_TIME_CHARS] not in times:
                continue
            caller = await self._callers.caller_of(api_key_id)
            if caller is None:
                continue  # its key was revoked: the hold runs out, or the receipt is paid
            nothing = nothing_of(lease, now_ms=self._clock.now_ms())
            try:
                await self._leaser.declare(seal(caller.signing_key, nothing))
            except RemoteProtocolError as error:
                # It was paid meanwhile, or its client has signed for it.
                log.info("leftover_not_disowned", job_id=lease.message.job_id, code=error.code)


def _batch_leases(conn: Connection) -> list[tuple[Signed[Lease], str]]:
    """The open leases of batches, each with the API key that pays for it."""
    found = []
    for row in list_open_leases(conn):
        if row.terms.api_key_id is None or row.delivery is not None:
            continue
        lease = open_envelope(row.envelope, Lease)
        for job in find_jobs(conn, lease.message.job_id):
            asked = open_envelope(job.request, JobRequest).message
            if asked.is_batch and asked.client == lease.message.client:
                found.append((lease, row.terms.api_key_id))
    return found


def _store_end(conn: Connection, batch: StoredBatch, rows: Sequence[StoredFile]) -> None:
    for row in rows:
        files.insert_file(conn, row)
    batches.store_batch(conn, batch)
