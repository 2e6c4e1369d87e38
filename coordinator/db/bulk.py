"""Statements for many rows at once: the shape of everything that a group commit reads and writes.

Measured on commits of 100 transfers: one INSERT of many rows takes half the time of `executemany`,
which takes half the time of SQLAlchemy's own executemany with dictionaries. It also gives up the
interpreter lock once instead of once a row, and a busy neighbour thread may keep the lock for
milliseconds each time. Rows are plain tuples, handed to the driver as they are.

SQL text is made once for sizes that are powers of two, so that the driver's cache of prepared
statements holds all of it.
"""

from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Insert,
    Select,
    Table,
    Update,
    bindparam,
    insert,
)
from sqlalchemy.engine.interfaces import DBAPICursor

from coordinator.errors import ConstraintError

Values = tuple[Any, ...]

# 256 rows of 11 columns are 2,816 parameters; SQLite's default limit is 32,766.
_ROWS_MAX = 256
_KEYS_MAX = 1024


class RecordStatement(Protocol):
    """What `run_records` can run. `rank` puts inserts before updates, and parents first."""

    @property
    def rank(self) -> tuple[bool, int]: ...

    def run(self, conn: Connection, rows: Sequence[Values]) -> None: ...


class BulkInsert:
    """Insert rows whose values are in the order of `columns`, which is that of the table.

    `on_conflict` is the clause behind VALUES that makes a repetition harmless; SQLAlchemy has no
    common form for it, but SQLite and PostgreSQL write it alike. Without it a duplicate is refused.
    """

    def __init__(self, table: Table, columns: Sequence[str], *, on_conflict: str = "") -> None:
        self._statement = insert(table)
        self._columns = tuple(columns)
        self._suffix = f" {on_conflict}" if on_conflict else ""
        self._sql: dict[tuple[str, int], str] = {}
        self.rank = (False, _position(table))

    def run(self, conn: Connection, rows: Sequence[Values]) -> None:
        """Raises ConstraintError, by way of the database, if a row breaks a constraint."""
        for chunk in _split(rows):
            sql = self._sql.get((conn.dialect.name, len(chunk))) or self._compile(conn, len(chunk))
            _cursor(conn).execute(sql, [value for row in chunk for value in row])

    def _compile(self, conn: Connection, rows: int) -> str:
        one = _compile(conn, self._statement, self._columns)
        head, _, values = one.partition(" VALUES ")
        sql = f"{head} VALUES {', '.join([values] * rows)}{self._suffix}"
        self._sql[conn.dialect.name, rows] = sql
        return sql


class BulkUpdate:
    """Run an UPDATE once for every row of values for `parameters`.

    With `must_hit`, a row that changes nothing is refused, and the transaction with it.
    """

    def __init__(
        self, statement: Update, parameters: Sequence[str], *, must_hit: bool = True
    ) -> None:
        self._statement = statement
        self._parameters = tuple(parameters)
        self._must_hit = must_hit
        self._sql: dict[str, str] = {}
        assert isinstance(statement.table, Table)
        self.rank = (True, _position(statement.table))

    def run(self, conn: Connection, rows: Sequence[Values]) -> None:
        """Raises ConstraintError if a row that must exist is missing."""
        sql = self._sql.get(conn.dialect.name)
        if sql is None:
            sql = self._sql[conn.dialect.name] = _compile(conn, self._statement, self._parameters)
        cursor = _cursor(conn)
        cursor.executemany(sql, rows)
        missing = len(rows) - cursor.rowcount
        if missing and self._must_hit:
            raise ConstraintError(
                f"{missing} of {len(rows)} rows of {self._statement.table} cannot change: "
                "they are missing or no longer in that state"
            )


class BulkQuery:
    """Run a SELECT or DELETE for the rows whose `key` is among many."""

    def __init__(self, statement: Select[Any] | Delete, key: ColumnElement[Any]) -> None:
        self._statement = statement.where(key.in_([bindparam("key")]))
        self._sql: dict[tuple[str, int], str] = {}

    def select(self, conn: Connection, keys: Collection[Any]) -> Iterator[Sequence[Any]]:
        """The rows found, in no order."""
        for chunk in _chunk(keys):
            yield from self._execute(conn, chunk).fetchall()

    def delete(self, conn: Connection, keys: Collection[Any]) -> None:
        """Raises ConstraintError if a key has no row."""
        deleted = sum(self._execute(conn, chunk).rowcount for chunk in _chunk(keys))
        if deleted != len(keys):
            raise ConstraintError(f"{len(keys) - deleted} of {len(keys)} rows are already gone")

    def _execute(self, conn: Connection, keys: tuple[Any, ...]) -> DBAPICursor:
        # A repeated key finds its row once: padding costs less than another prepared statement.
        size = 1 << (len(keys) - 1).bit_length()
        sql = self._sql.get((conn.dialect.name, size)) or self._compile(conn, size)
        cursor = _cursor(conn)
        cursor.execute(sql, keys + keys[-1:] * (size - len(keys)))
        return cursor

    def _compile(self, conn: Connection, size: int) -> str:
        head, found, tail = _compile(conn, self._statement, ("key",)).partition(" IN (")
        assert found, "the only IN of the statement is the one that was just added"
        placeholder, _, tail = tail.partition(")")
        sql = f"{head} IN ({', '.join([placeholder] * size)}){tail}"
        self._sql[conn.dialect.name, size] = sql
        return sql


class FixedQuery:
    """Run a SELECT without parameters."""

    def __init__(self, statement: Select[Any]) -> None:
        self._statement = statement
        self._sql: dict[str, str] = {}

    def first(self, conn: Connection) -> Sequence[Any] | None:
        """The first row, or None."""
        sql = self._sql.get(conn.dialect.name)
        if sql is None:
            compiled = self._statement.compile(
                dialect=conn.dialect, compile_kwargs={"literal_binds": True}
            )
            sql = self._sql[conn.dialect.name] = str(compiled)
        cursor = _cursor(conn)
        cursor.execute(sql)
        row: Sequence[Any] | None = cursor.fetchone()
        return row


class Record(NamedTuple):
    """A row to write together with a posting (`coordinator.db.writer`)."""

    statement: RecordStatement
    values: Values


def run_records(conn: Connection, records: Iterable[Record]) -> None:
    """Write rows of many kinds, grouped by statement."""
    rows: dict[RecordStatement, list[Values]] = {}
    for statement, values in records:
        rows.setdefault(statement, []).append(values)
    for statement in sorted(rows, key=lambda statement: statement.rank):
        statement.run(conn, rows[statement])


def _cursor(conn: Connection) -> DBAPICursor:
    """The driver's own cursor: through SQLAlchemy a small statement costs four times as much, and a
    lone hold, which a first token waits for, is eight small statements."""
    return conn.connection.cursor()


def _position(table: Table) -> int:
    return table.metadata.sorted_tables.index(table)


def _split(rows: Sequence[Values]) -> Iterator[Sequence[Values]]:
    """Chunks whose sizes are powers of two, largest first."""
    start = 0
    while remaining := len(rows) - start:
        size = min(_ROWS_MAX, 1 << (remaining.bit_length() - 1))
        yield rows[start : start + size]
        start += size


def _chunk(keys: Collection[Any]) -> Iterator[tuple[Any, ...]]:
    listed = tuple(keys)
    for start in range(0, len(listed), _KEYS_MAX):
        yield listed[start : start + _KEYS_MAX]


def _compile(
    conn: Connection,
    statement: Insert | Update | Delete | Select[Any],
    parameters: tuple[str, ...],
) -> str:
    """The statement's text with positional placeholders, which bind `parameters` in this order."""
    keys = list(parameters) if isinstance(statement, Insert) else None
    compiled = statement.compile(dialect=conn.dialect, column_keys=keys)
    # Only fails while someone writes a new statement, or for a driver that binds by name.
    assert tuple(compiled.positiontup or ()) == parameters, compiled.positiontup
    return str(compiled)
