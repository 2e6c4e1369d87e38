"""The rows of files and batches of a gateway beside its users, in one small SQLite file.

They are few (files and batches are bounded), so all of them are in memory; the file is what the
next process reads.
"""

import sqlite3
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TypeVar

from coordinator.db.filing_rows import Page, StoredBatch, StoredFile
from coordinator.edge.errors import FilingError
from coordinator.ledger.accounts import AccountId
from protocol.codec import decode, encode
from protocol.errors import RemoteProtocolError
from protocol.programs.runners import Runner
from protocol.programs.sqlite import (
    BEGIN_WRITE,
    BUSY_TIMEOUT_S,
    configure_connection,
    keep_database_private,
)

_SCHEMA = """
CREATE TABLE IF NOT EXISTS filing (
    kind TEXT NOT NULL,
    id TEXT NOT NULL,
    row BLOB NOT NULL,
    PRIMARY KEY (kind, id)
) STRICT
"""
_FILE, _BATCH = "file", "batch"
_PUT = "INSERT OR REPLACE INTO filing (kind, id, row) VALUES (?, ?, ?)"

RowT = TypeVar("RowT", StoredFile, StoredBatch)


class EdgeFiling:
    """A `FilingRows`. Made at start-up, where it may block. Raises FilingError."""

    def __init__(self, path: Path, runner: Runner) -> None:
        self._path = path
        self._runner = runner
        self._files: dict[str, StoredFile] = {}
        self._batches: dict[str, StoredBatch] = {}
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            keep_database_private(path)
        except OSError as error:
            raise FilingError(str(error)) from None
        self._transact(self._load)

    async def bytes_by_account(self) -> dict[str, int]:
        sums: dict[str, int] = {}
        for stored in self._files.values():
            sums[stored.account] = sums.get(stored.account, 0) + stored.bytes
        return sums

    async def file_ids(self) -> set[str]:
        return set(self._files)

    async def add_file(self, stored: StoredFile) -> None:
        await self._write(partial(_put, _FILE, [stored]))
        self._files[stored.id] = stored

    async def find_file(self, file_id: str) -> StoredFile | None:
        return self._files.get(file_id)

    async def list_files(
        self, account: AccountId, page: Page, *, purpose: str | None
    ) -> list[StoredFile]:
        own = [row for row in self._files.values() if row.account == account]
        return _page([row for row in own if purpose in (None, row.purpose)], page)

    async def expired_files(self, *, now_ms: int, limit: int) -> list[StoredFile]:
        expired = [row for row in self._files.values() if row.expires_at_ms <= now_ms]
        return expired[:limit]

    async def delete_file(self, file_id: str) -> bool:
        if file_id not in self._files:
            return False
        await self._write(partial(_delete, _FILE, file_id))
        return self._files.pop(file_id, None) is not None

    async def add_batch(self, batch: StoredBatch) -> None:
        await self.store_batch(batch)

    async def store_batch(self, batch: StoredBatch) -> None:
        await self._write(partial(_put, _BATCH, [batch]))
        self._batches[batch.id] = batch

    async def end_batch(self, batch: StoredBatch, files: Sequence[StoredFile]) -> None:
        def put_all(conn: sqlite3.Connection) -> None:
            _put(_FILE, files, conn)
            _put(_BATCH, [batch], conn)

        await self._write(put_all)
        self._files |= {stored.id: stored for stored in files}
        self._batches[batch.id] = batch

    async def find_batch(self, batch_id: str) -> StoredBatch | None:
        return self._batches.get(batch_id)

    async def list_batches(self, account: AccountId, page: Page) -> list[StoredBatch]:
        return _page([row for row in self._batches.values() if row.account == account], page)

    async def open_batches(self) -> list[StoredBatch]:
        found = [row for row in self._batches.values() if row.ended_at_ms is None]
        return sorted(found, key=lambda batch: batch.id)

    async def _write(self, change: Callable[[sqlite3.Connection], None]) -> None:
        await self._runner.run_write(partial(self._transact, change))

    def _transact(self, change: Callable[[sqlite3.Connection], None]) -> None:
        """Blocks. Raises FilingError."""
        try:
            with closing(sqlite3.connect(self._path, timeout=BUSY_TIMEOUT_S)) as conn:
                configure_connection(conn)
                conn.execute(BEGIN_WRITE)
                change(conn)
                conn.execute("COMMIT")
        except sqlite3.Error as error:
            raise FilingError(f"cannot use the files' rows at {self._path}: {error}") from None

    def _load(self, conn: sqlite3.Connection) -> None:
        conn.execute(_SCHEMA)
        try:
            for kind, row in conn.execute("SELECT kind, row FROM filing"):
                if kind == _FILE:
                    stored = decode(StoredFile, row)
                    self._files[stored.id] = stored
                else:
                    batch = decode(StoredBatch, row)
                    self._batches[batch.id] = batch
        except RemoteProtocolError as error:
            raise FilingError(f"a row of {self._path} is damaged: {error}") from None


def _put(kind: str, rows: Iterable[StoredFile | StoredBatch], conn: sqlite3.Connection) -> None:
    conn.executemany(_PUT, [(kind, row.id, encode(row)) for row in rows])


def _delete(kind: str, row_id: str, conn: sqlite3.Connection) -> None:
    conn.execute("DELETE FROM filing WHERE kind = ? AND id = ?", (kind, row_id))


def _page(rows: list[RowT], page: Page) -> list[RowT]:
    """As the books cut a list."""
    ordered = sorted(rows, key=lambda row: row.id, reverse=not page.is_ascending)
    if page.after is not None:
        after, is_ascending = page.after, page.is_ascending
        ordered = [row for row in ordered if (row.id > after if is_ascending else row.id < after)]
    return ordered[: page.limit]
