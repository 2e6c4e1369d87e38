"""The outbox on disk: one small SQLite file, queried by plain functions. `capanode.outbox` owns it.

    receipts   signed for, not yet acknowledged by the coordinator; refused ones stay as evidence
    earnings   per coordinator, what acknowledged receipts came to

A receipt that was committed survives a power cut: `protocol.programs.sqlite`.
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
    Executable,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    StaticPool,
    String,
    Table,
    bindparam,
    create_engine,
    delete,
    event,
    func,
    select,
    update,
)
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.exc import DBAPIError

from capanode.errors import OutboxError, OutboxFullError
from protocol.ids import LeaseId, PeerId
from protocol.programs.sqlite import (
    BEGIN_WRITE,
    BUSY_TIMEOUT_S,
    configure_connection,
    keep_database_private,
)

_SCHEMA_VERSION = 1

# States of a receipt that is still here; others are its coordinator's last word.
WAITING = "waiting"
# The coordinator has it, but lets the client have its say before it pays.
PENDING = "pending"
REFUSED = "refused"
_TO_HAND_IN = (WAITING, PENDING)

_metadata = MetaData()

_receipts = Table(
    "receipts",
    _metadata,
    Column("lease_id", String(26), primary_key=True),
    Column("coordinator", String(64), nullable=False),
    Column("receipt", LargeBinary, nullable=False),
    Column("acceptance", LargeBinary, nullable=False, default=b""),
    Column("amount_nano", BigInteger, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", String(200), nullable=False, default=""),
    Column("tries", Integer, nullable=False, default=0),
    Column("due_ms", BigInteger, nullable=False),
    CheckConstraint("amount_nano >= 0", name="amount_is_not_negative"),
    Index("receipts_by_due", "coordinator", "state", "due_ms"),
)

_earnings = Table(
    "earnings",
    _metadata,
    Column("coordinator", String(64), primary_key=True),
    Column("state", String(16), primary_key=True),
    Column("jobs", BigInteger, nullable=False),
    Column("amount_nano", BigInteger, nullable=False),
)


@dataclass(frozen=True, slots=True)
class OutboxReceipt:
    """A signed receipt on its way to a coordinator. `due_ms` is when to hand it in next."""

    lease_id: LeaseId
    coordinator: PeerId
    receipt: bytes
    acceptance: bytes
    amount_nano: int
    tries: int
    due_ms: int


@dataclass(frozen=True, slots=True)
class Earning:
    """What a coordinator acknowledged; `state` is what it answered, or for receipts that are still
    here `waiting`, `pending` or `refused`."""

    coordinator: PeerId
    state: str
    jobs: int
    amount_nano: int


@dataclass(frozen=True, slots=True)
class Change:
    """One change to the file; several share a transaction, and so the cost of making it durable.

    Statements are made once and take their values as parameters: to build one costs as much as to
    run it, and every job needs four.
    """

    statement: Executable
    values: dict[str, object]
    # What else happens, and only if the statement changed a row.
    then: "Change | None" = None


class OutboxStore:
    """The open file. Its methods block; only one of them runs at a time."""

    def __init__(self, path: Path | None) -> None:
        """`None` keeps everything in memory, for simulations. Raises OutboxError."""
        if path is not None:
            _keep_private(path)
        self._engine = create_engine(
            f"sqlite:///{path}" if path is not None else "sqlite://",
            poolclass=StaticPool,
            connect_args={"check_same_thread": False, "timeout": BUSY_TIMEOUT_S},
        )
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", _begin)
        with self._transaction() as connection:
            version = connection.exec_driver_sql("PRAGMA user_version").scalar_one()
            if version not in (0, _SCHEMA_VERSION):
                raise OutboxError(f"{path} was written by a newer capanode: upgrade this one")
            _metadata.create_all(connection)
            connection.exec_driver_sql(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def apply(self, changes: Iterable[Change]) -> int:
        """All of them in one durable transaction; returns how many receipts are here then.

        Raises OutboxError; none of the changes was made then.
        """
        with self._transaction() as connection:
            for change in changes:
                _run(connection, change)
            return _count(connection)

    def due(self, coordinator: PeerId, *, limit: int) -> list[OutboxReceipt]:
        """What waits for a coordinator, earliest due first."""
        with self._transaction() as connection:
            rows = connection.execute(_DUE, {"owed_by": coordinator, "most": limit})
            return [_to_receipt(row) for row in rows]

    def count(self) -> int:
        with self._transaction() as connection:
            return _count(connection)

    def earnings(self) -> list[Earning]:
        """Sums by coordinator and state, of what was acknowledged and of what is still here."""
        here = select(
            _receipts.c.coordinator,
            _receipts.c.state,
            func.count(),
            func.sum(_receipts.c.amount_nano),
        ).group_by(_receipts.c.coordinator, _receipts.c.state)
        with self._transaction() as connection:
            rows = [*connection.execute(select(_earnings)), *connection.execute(here)]
        return [Earning(PeerId(row[0]), row[1], row[2], row[3]) for row in rows]

    def close(self) -> None:
        self._engine.dispose()

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        try:
            with self._engine.begin() as connection:
                yield connection
        except DBAPIError as error:
            raise _translate(error) from error


_DUE = (
    select(_receipts)
    .where(_receipts.c.coordinator == bindparam("owed_by"), _receipts.c.state.in_(_TO_HAND_IN))
    .order_by(_receipts.c.due_ms, _receipts.c.lease_id)
    .limit(bindparam("most"))
)
_COUNT = select(func.count()).select_from(_receipts)
_INSERT = (
    insert(_receipts)
    .values({name: bindparam(name) for name in (*OutboxReceipt.__slots__, "state")})
    .on_conflict_do_nothing()
)
_ATTACH = (
    update(_receipts)
    .where(_receipts.c.lease_id == bindparam("lease"), _receipts.c.state.in_(_TO_HAND_IN))
    .values(
        acceptance=bindparam("new_acceptance"),
        due_ms=func.min(_receipts.c.due_ms, bindparam("now_ms")),
    )
)
_FORGET = delete(_receipts).where(_receipts.c.lease_id == bindparam("lease"))
_EARN = insert(_earnings).values(
    {name: bindparam(name) for name in ("coordinator", "state", "jobs", "amount_nano")}
)
_EARN = _EARN.on_conflict_do_update(
    index_elements=["coordinator", "state"],
    set_={
        "jobs": _earnings.c.jobs + 1,
        "amount_nano": _earnings.c.amount_nano + _EARN.excluded.amount_nano,
    },
)
_REFUSE = (
    update(_receipts)
    .where(_receipts.c.lease_id == bindparam("lease"))
    .values(state=REFUSED, reason=bindparam("new_reason"))
)
_POSTPONE = (
    update(_receipts)
    .where(_receipts.c.lease_id == bindparam("lease"))
    .values(
        due_ms=bindparam("new_due_ms"),
        tries=_receipts.c.tries + 1,
        state=bindparam("new_state"),
    )
)
# ULIDs sort by time.
_KEPT = (
    select(_receipts.c.lease_id)
    .where(_receipts.c.state == REFUSED)
    .order_by(_receipts.c.lease_id.desc())
    .limit(bindparam("keep"))
)
_PRUNE = delete(_receipts).where(_receipts.c.state == REFUSED, _receipts.c.lease_id.not_in(_KEPT))


def insert_receipt(stored: OutboxReceipt) -> Change:
    """A receipt that is here already stays as it is: a lease ends once."""
    values = {name: getattr(stored, name) for name in OutboxReceipt.__slots__}
    return Change(_INSERT, values | {"state": WAITING})


def attach_acceptance(lease_id: LeaseId, acceptance: bytes, *, now_ms: int) -> Change:
    """Complete a receipt; it is due at once then. One that is gone already needs nothing."""
    values = {"lease": lease_id, "new_acceptance": acceptance, "now_ms": now_ms}
    return Change(_ATTACH, values)


def acknowledge(stored: OutboxReceipt, *, state: str) -> Change:
    """The coordinator has it: forget the receipt, count the money. Idempotent."""
    earned = {
        "coordinator": stored.coordinator,
        "state": state,
        "jobs": 1,
        "amount_nano": stored.amount_nano,
    }
    return Change(_FORGET, {"lease": stored.lease_id}, then=Change(_EARN, earned))


def refuse(lease_id: LeaseId, *, reason: str) -> Change:
    """The coordinator will never take it. It stays as evidence for a dispute."""
    return Change(_REFUSE, {"lease": lease_id, "new_reason": reason[:200]})


def postpone(lease_id: LeaseId, *, due_ms: int, state: str = WAITING) -> Change:
    """Count a try that was not the last, and try again later."""
    return Change(_POSTPONE, {"lease": lease_id, "new_due_ms": due_ms, "new_state": state})


def prune_refused(*, keep: int) -> Change:
    """Drop the oldest refused receipts beyond `keep`."""
    return Change(_PRUNE, {"keep": keep})


def _run(connection: Connection, change: Change) -> None:
    changed = connection.execute(change.statement, change.values).rowcount
    if changed and change.then is not None:
        _run(connection, change.then)


def _count(connection: Connection) -> int:
    return int(connection.execute(_COUNT).scalar_one())


def _to_receipt(row: Any) -> OutboxReceipt:
    return OutboxReceipt(
        lease_id=LeaseId(row.lease_id),
        coordinator=PeerId(row.coordinator),
        receipt=row.receipt,
        acceptance=row.acceptance,
        amount_nano=row.amount_nano,
        tries=row.tries,
        due_ms=row.due_ms,
    )


def _keep_private(path: Path) -> None:
    try:
        keep_database_private(path)
    except OSError as error:
        raise OutboxError(f"the outbox cannot be used: {error}") from error


def _configure(connection: sqlite3.Connection, _record: object) -> None:
    configure_connection(connection)


def _begin(connection: Connection) -> None:
    connection.exec_driver_sql(BEGIN_WRITE)


def _translate(error: DBAPIError) -> OutboxError:
    cause = error.orig
    code = getattr(cause, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return OutboxFullError("the disk under the outbox is full: free some space")
    if isinstance(code, int) and code & 0xFF == sqlite3.SQLITE_IOERR:
        # Some file systems report a full disk as a failed write or sync.
        return OutboxFullError(f"the outbox cannot be written: {cause}")
    return OutboxError(f"the outbox cannot be used: {cause}")
