"""The database as the program sees it: `await db.read(fn, …)` and `await db.write(fn, …)`.

A query is a plain function of a connection that returns plain objects. Its whole transaction runs
in one call, elsewhere: a thread in production, in place in a simulation, where a thread would race
the virtual clock. There is no await inside a transaction.

The URL chooses the database. SQLite is the only one so far; what is particular to it is in
`coordinator.db.sqlite`, and another database needs the same few functions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import URL, Connection, make_url
from sqlalchemy.exc import ArgumentError

from coordinator.db import sqlite
from coordinator.db.migrations import upgrade_schema
from coordinator.errors import DamagedBooksError, InvalidRowError, StorageError
from protocol.programs.locks import hold_lock
from protocol.programs.runners import READERS_MAX, InlineRunner, Runner, ThreadRunner

__all__ = ["Connection", "Database", "InlineRunner", "Runner", "ThreadRunner", "open_database"]

P = ParamSpec("P")
T = TypeVar("T")


class Database:
    """Connections to one database. `open_database` makes it, and brings it up to date."""

    def __init__(self, url: str, runner: Runner) -> None:
        parsed = _parse(url)
        self._runner = runner
        if not sqlite.is_memory(parsed):
            _check_folder(parsed)
            sqlite.keep_private(Path(parsed.database or ""))
        self._write_engine, self._read_engine = sqlite.open_engines(parsed, readers_max=READERS_MAX)
        self._writer: Connection | None = None
        # One connection cannot carry two transactions: reads then take the writer's turn.
        self._run_read = (
            runner.run_write if self._read_engine is self._write_engine else runner.run_read
        )

    async def read(
        self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `query(conn, …)` on one consistent snapshot. It must not write."""
        return await self._run_read(partial(self._read, query, *args, **kwargs))

    async def write(
        self, query: Callable[Concatenate[Connection, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run `query(conn, …)` in a transaction: durable when this returns, undone if it raises.

        Raises StorageError and its kin for what the database refuses.
        """
        return await self._runner.run_write(partial(self._write, query, *args, **kwargs))

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A write transaction in the calling thread: for start-up and for the command line."""
        with self._translated(), self._write_engine.begin() as connection:
            yield connection

    def close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._read_engine.dispose()
        self._write_engine.dispose()

    def _read(self, query: Callable[..., T], *args: object, **kwargs: object) -> T:
        with self._translated(), self._read_engine.begin() as connection:
            return query(connection, *args, **kwargs)

    def _write(self, query: Callable[..., T], *args: object, **kwargs: object) -> T:
        # Kept between transactions: taking it from the pool costs more than a lone BEGIN.
        with self._translated():
            if self._writer is None or self._writer.invalidated:
                self._writer = self._write_engine.connect()
            with self._writer.begin():
                return query(self._writer, *args, **kwargs)

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite.ERRORS as error:
            raise sqlite.translate_error(error) from error
        except UnicodeDecodeError as error:
            raise DamagedBooksError(sqlite.DAMAGED_HINT) from error
        except (OverflowError, UnicodeEncodeError) as error:
            # Drivers raise these as they are, while they bind a value.
            raise InvalidRowError(f"a value does not fit its column: {error}") from error


@contextmanager
def only_coordinator(url: str) -> Iterator[None]:
    """Be the only coordinator on a database file, by whatever path, link or folder it is reached.

    Enter it before `open_database` and leave it after `close`. Raises AlreadyRunningError.
    """
    parsed = _parse(url)
    if sqlite.is_memory(parsed):
        yield
        return
    path = Path(parsed.database or "")
    _check_folder(parsed)
    sqlite.keep_private(path)
    # The lock is on the file itself. It is no POSIX lock, which SQLite's own would be lost with
    # when this descriptor closes.
    with hold_lock(
        path,
        refusal=f"another coordinator runs on the database {path}: stop it, or use another "
        "--database",
    ):
        yield


def _check_folder(parsed: URL) -> None:
    if not Path(parsed.database or "").parent.is_dir():
        raise StorageError(f"the folder of {parsed.database} does not exist: create it first")


def database_exists(url: str) -> bool:
    """Whether there is a database to open, or `open_database` would make one. Raises StorageError
    if the URL cannot be read."""
    return sqlite.is_memory(parsed := _parse(url)) or Path(parsed.database or "").is_file()


def open_database(url: str, runner: Runner) -> Database:
    """Connect, and bring the schema up to this program's version. Blocks for some milliseconds.

    Raises SchemaVersionError if a newer version of the program wrote the database.
    """
    database = Database(url, runner)
    try:
        with database.transaction() as connection:
            upgrade_schema(connection)
    except BaseException:
        # The caller gets no database to close; an open one would hold locks and threads.
        database.close()
        raise
    return database


def _parse(url: str) -> URL:
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise StorageError(
            "the database URL cannot be read: write for example sqlite:////var/lib/capa.db"
        ) from None
    if parsed.get_backend_name() != "sqlite":
        raise StorageError(
            f"there is no support for {parsed.get_backend_name()} yet: use a sqlite:/// URL"
        )
    return parsed
