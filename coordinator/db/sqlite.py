"""What is particular to SQLite: connections, locking, and what its errors mean.

How connections are set up stands in `protocol.programs.sqlite`.
"""

import sqlite3
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, QueuePool, StaticPool, create_engine, event
from sqlalchemy.exc import DBAPIError

from coordinator.errors import (
    ConstraintError,
    DamagedBooksError,
    StorageBusyError,
    StorageError,
    StorageFullError,
)
from protocol.programs.sqlite import (
    BEGIN_READ,
    BEGIN_WRITE,
    BUSY_TIMEOUT_S,
    configure_connection,
    keep_database_private,
)

# `coordinator.db.bulk` has about ten sizes of some fifteen statements.
_STATEMENTS_MAX = 512

_FULL_HINT = "the disk of the ledger is full: free some space; nothing was recorded"
_BUSY_HINT = "another process held the database for too long; nothing was recorded: try again"
DAMAGED_HINT = (
    "the database file is damaged: stop all programs that use it, keep a copy of it, and restore "
    "the newest backup"
)


def is_memory(url: URL) -> bool:
    return url.database in (None, "", ":memory:")


def open_engines(url: URL, *, readers_max: int) -> tuple[Engine, Engine]:
    """The engine that writes and the one that reads. In memory they are one, on one connection."""
    arguments: dict[str, Any] = {
        "check_same_thread": False,
        "timeout": BUSY_TIMEOUT_S,
        "cached_statements": _STATEMENTS_MAX,
    }
    if is_memory(url):
        engine = create_engine(url, poolclass=StaticPool, connect_args=arguments)
        _configure(engine, begin=BEGIN_WRITE, read_only=False)
        return engine, engine
    # Two for writing: the one that the writer's thread keeps, and one for `Database.transaction`.
    write_engine, read_engine = (
        create_engine(
            url, poolclass=QueuePool, pool_size=size, max_overflow=0, connect_args=arguments
        )
        for size in (2, readers_max)
    )
    _configure(write_engine, begin=BEGIN_WRITE, read_only=False)
    _configure(read_engine, begin=BEGIN_READ, read_only=True)
    return write_engine, read_engine


def keep_private(path: Path) -> None:
    """The books say who buys what from whom: they are their owner's alone. Raises StorageError."""
    try:
        keep_database_private(path)
    except OSError as error:
        raise StorageError(str(error)) from error


def _configure(engine: Engine, *, begin: str, read_only: bool) -> None:
    def connect(connection: sqlite3.Connection, _record: object) -> None:
        configure_connection(connection, read_only=read_only)

    def begin_transaction(connection: Connection) -> None:
        # The driver's own cursor: through SQLAlchemy it is a twelfth of a lone commit's CPU time.
        connection.connection.cursor().execute(begin)

    event.listen(engine, "connect", connect)
    event.listen(engine, "begin", begin_transaction)


# As raised by SQLAlchemy, and by the driver where `coordinator.db.bulk` calls it directly.
ERRORS = (DBAPIError, sqlite3.Error)


def translate_error(error: Exception) -> StorageError:
    """Our name for one of ERRORS; the original stays attached as the cause."""
    original = error.orig if isinstance(error, DBAPIError) else error
    code = getattr(original, "sqlite_errorcode", 0)
    primary = code & 0xFF  # the rest tells kinds of one error apart
    if primary == sqlite3.SQLITE_FULL:
        return StorageFullError(_FULL_HINT)
    if primary in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StorageBusyError(_BUSY_HINT)
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return DamagedBooksError(f"{DAMAGED_HINT}: {original}")
    if primary == sqlite3.SQLITE_CONSTRAINT:
        return ConstraintError(f"the database refused a row: {original}")
    return StorageError(f"the database failed: {original}")
