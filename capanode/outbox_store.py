"""The outbox on disk: one small SQLite file, queried by plain functions. `capanode.outbox` owns it.

    receipts   signed for, not yet acknowledged by the coordinator; refused ones stay as evidence
    earnings   per coordinator, what acknowledged receipts came to
    paid_days  what was paid after the fee, by day (UTC), coordinator, model and device; days longer
               ago than DAYS_KEPT are added up in day 0

A receipt that was committed survives a power cut: `protocol.programs.sqlite`. The statements are
plain SQL: a layer that makes them took two thirds of the time of a job's write (630 µs of CPU for
one receipt, 190 without it, on a busy machine).
"""

import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from capanode.errors import OutboxError, OutboxFullError
from protocol.ids import LeaseId, PeerId
from protocol.programs.sqlite import (
    BEGIN_WRITE,
    BUSY_TIMEOUT_S,
    configure_connection,
    keep_database_private,
)

_SCHEMA_VERSION = 2
_REASON_CHARS_MAX = 200

# A year and a month, so that a month can be compared with that of the year before.
DAYS_KEPT = 400
# What was paid before days were kept, and before DAYS_KEPT.
EARLIER = 0

# States of a receipt that is still here; others are its coordinator's last word.
WAITING = "waiting"
# The coordinator has it, but lets the client have its say before it pays.
PENDING = "pending"
REFUSED = "refused"

_SCHEMA = (
    """CREATE TABLE IF NOT EXISTS receipts (
        lease_id VARCHAR(26) NOT NULL PRIMARY KEY,
        coordinator VARCHAR(64) NOT NULL,
        receipt BLOB NOT NULL,
        acceptance BLOB NOT NULL,
        amount_nano BIGINT NOT NULL,
        state VARCHAR(16) NOT NULL,
        reason VARCHAR(200) NOT NULL,
        tries INTEGER NOT NULL,
        due_ms BIGINT NOT NULL,
        model VARCHAR(128) NOT NULL DEFAULT '',
        device VARCHAR(128) NOT NULL DEFAULT '',
        CONSTRAINT amount_is_not_negative CHECK (amount_nano >= 0))""",
    """CREATE TABLE IF NOT EXISTS earnings (
        coordinator VARCHAR(64) NOT NULL,
        state VARCHAR(16) NOT NULL,
        jobs BIGINT NOT NULL,
        amount_nano BIGINT NOT NULL,
        PRIMARY KEY (coordinator, state))""",
    """CREATE TABLE IF NOT EXISTS paid_days (
        day INTEGER NOT NULL,
        coordinator VARCHAR(64) NOT NULL,
        model VARCHAR(128) NOT NULL,
        device VARCHAR(128) NOT NULL,
        jobs BIGINT NOT NULL,
        billed_nano BIGINT NOT NULL,
        paid_nano BIGINT NOT NULL,
        PRIMARY KEY (day, coordinator, model, device)) WITHOUT ROWID""",
)

# From a version to the next one. Version 1 knew only what was billed.
_UPGRADES = {
    1: (
        "DROP INDEX IF EXISTS receipts_by_due",
        "ALTER TABLE receipts ADD COLUMN model VARCHAR(128) NOT NULL DEFAULT ''",
        "ALTER TABLE receipts ADD COLUMN device VARCHAR(128) NOT NULL DEFAULT ''",
        """INSERT INTO paid_days
            SELECT 0, coordinator, '', '', sum(jobs), sum(amount_nano), sum(amount_nano)
            FROM earnings GROUP BY coordinator""",
    )
}


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
    state: str = WAITING
    model: str = ""
    device: str = ""


@dataclass(frozen=True, slots=True)
class Earning:
    """What a coordinator acknowledged; `state` is what it answered, or for receipts that are still
    here `waiting`, `pending` or `refused`."""

    coordinator: PeerId
    state: str
    jobs: int
    amount_nano: int


@dataclass(frozen=True, slots=True)
class PaidDay:
    """What one coordinator paid on one day for one model on one device. `day` counts days since
    1970 in UTC; EARLIER is all that are not kept singly. `billed_nano` is before the fee."""

    day: int
    coordinator: PeerId
    model: str
    device: str
    jobs: int
    billed_nano: int
    paid_nano: int


@dataclass(frozen=True, slots=True)
class Change:
    """One change to the file; several share a transaction, and so the cost of making it durable."""

    statement: str
    values: dict[str, object]
    # What else happens, and only if the statement changed a row.
    then: "Change | None" = None


class OutboxStore:
    """The open file. Its methods block; only one of them runs at a time."""

    def __init__(self, path: Path | None) -> None:
        """`None` keeps everything in memory, for simulations. Raises OutboxError."""
        self._place = "memory" if path is None else str(path)
        if path is not None:
            _keep_private(path)
        try:
            # Any thread may come, one after the other.
            self._connection = sqlite3.connect(
                path or ":memory:", timeout=BUSY_TIMEOUT_S, check_same_thread=False
            )
            configure_connection(self._connection)
        except sqlite3.Error as error:
            raise _translate(error, self._place) from error
        with self._transaction() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > _SCHEMA_VERSION:
                raise OutboxError(
                    f"{path} has schema {version}, this capanode knows up to {_SCHEMA_VERSION}: "
                    "run the newer version that wrote it"
                )
            for statement in (*_SCHEMA, *_UPGRADES.get(version, ())):
                connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def apply(self, changes: Iterable[Change]) -> None:
        """All of them in one durable transaction.

        Raises OutboxError; none of the changes was made then.
        """
        with self._transaction() as connection:
            for change in changes:
                _run(connection, change)

    def load(self) -> list[OutboxReceipt]:
        """What waits for coordinators, earliest due first."""
        with self._transaction() as connection:
            rows = connection.execute(_LOAD, {"waiting": WAITING, "pending": PENDING}).fetchall()
        return [OutboxReceipt(*row) for row in rows]

    def count_refused(self) -> int:
        with self._transaction() as connection:
            (count,) = connection.execute(_COUNT, {"refused": REFUSED}).fetchone()
        return int(count)

    def earnings(self) -> list[Earning]:
        """Sums by coordinator and state, of what was acknowledged and of what is still here."""
        with self._transaction() as connection:
            rows = connection.execute(_ACKNOWLEDGED).fetchall()
            rows += connection.execute(_STILL_HERE).fetchall()
        return [Earning(*row) for row in rows]

    def paid_since(self, day: int) -> int:
        """Nano-credits that were paid on this day and later."""
        with self._transaction() as connection:
            (paid,) = connection.execute(_PAID_SINCE, {"day": day}).fetchone()
        return int(paid)

    def close(self) -> None:
        self._connection.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        connection = self._connection
        try:
            connection.execute(BEGIN_WRITE)
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                # A failed commit on a full disk may have ended the transaction already.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise _translate(error, self._place) from error


def read_paid_days(path: Path) -> list[PaidDay]:
    """What was paid, by a file that a running node may have open; nothing if there is no file yet,
    or none that a version with days has opened. Raises OutboxError."""
    if not path.exists():
        return []
    try:
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=BUSY_TIMEOUT_S)
        with closing(connection):
            (known,) = connection.execute(_HAS_DAYS).fetchone()
            return [PaidDay(*row) for row in connection.execute(_PAID_DAYS)] if known else []
    except sqlite3.Error as error:
        raise _translate(error, str(path)) from error


_HAS_DAYS = "SELECT count(*) FROM sqlite_master WHERE name = 'paid_days'"
_LOAD = """
    SELECT lease_id, coordinator, receipt, acceptance, amount_nano, tries, due_ms, state, model,
        device
    FROM receipts WHERE state IN (:waiting, :pending) ORDER BY due_ms, lease_id"""
_COUNT = "SELECT count(*) FROM receipts WHERE state = :refused"
_ACKNOWLEDGED = "SELECT coordinator, state, jobs, amount_nano FROM earnings"
_STILL_HERE = """
    SELECT coordinator, state, count(*), sum(amount_nano)
    FROM receipts GROUP BY coordinator, state"""
_PUT = """
    INSERT INTO receipts
        (lease_id, coordinator, receipt, acceptance, amount_nano, state, reason, tries, due_ms,
        model, device)
    VALUES
        (:lease_id, :coordinator, :receipt, :acceptance, :amount_nano, :state, '', :tries, :due_ms,
        :model, :device)
    ON CONFLICT DO UPDATE SET
        acceptance = excluded.acceptance, state = excluded.state, tries = excluded.tries,
        due_ms = excluded.due_ms"""
_FORGET = "DELETE FROM receipts WHERE lease_id = :lease_id"
_EARN = """
    INSERT INTO earnings (coordinator, state, jobs, amount_nano)
    VALUES (:coordinator, :state, 1, :amount_nano)
    ON CONFLICT DO UPDATE SET
        jobs = jobs + 1, amount_nano = amount_nano + excluded.amount_nano"""
_PAID_DAYS = """
    SELECT day, coordinator, model, device, jobs, billed_nano, paid_nano
    FROM paid_days ORDER BY day, coordinator, model, device"""
_PAID_SINCE = "SELECT coalesce(sum(paid_nano), 0) FROM paid_days WHERE day >= :day"
_PAY = """
    INSERT INTO paid_days (day, coordinator, model, device, jobs, billed_nano, paid_nano)
    VALUES (:day, :coordinator, :model, :device, 1, :amount_nano, :paid_nano)
    ON CONFLICT DO UPDATE SET
        jobs = jobs + 1, billed_nano = billed_nano + excluded.billed_nano,
        paid_nano = paid_nano + excluded.paid_nano"""
_IS_OLD = "day > 0 AND day < :first_day"
# The condition is a constant of ours.
_FOLD = f"""
    INSERT INTO paid_days
    SELECT 0, coordinator, model, device, sum(jobs), sum(billed_nano), sum(paid_nano)
    FROM paid_days WHERE {_IS_OLD} GROUP BY coordinator, model, device
    ON CONFLICT DO UPDATE SET
        jobs = jobs + excluded.jobs, billed_nano = billed_nano + excluded.billed_nano,
        paid_nano = paid_nano + excluded.paid_nano"""  # noqa: S608
_FOLDED = f"DELETE FROM paid_days WHERE {_IS_OLD}"  # noqa: S608
_REFUSE = """
    UPDATE receipts SET state = :refused, reason = :reason WHERE lease_id = :lease_id"""
# ULIDs sort by time.
_PRUNE = """
    DELETE FROM receipts WHERE state = :refused AND lease_id NOT IN (
        SELECT lease_id FROM receipts WHERE state = :refused
        ORDER BY lease_id DESC LIMIT :keep)"""


def put_receipt(stored: OutboxReceipt) -> Change:
    """It is new, its acceptance came, or it was tried and is due later."""
    return Change(_PUT, {name: getattr(stored, name) for name in OutboxReceipt.__slots__})


def acknowledge(stored: OutboxReceipt, *, state: str, paid_nano: int, day: int) -> Change:
    """The coordinator has paid: forget the receipt, count the money. Idempotent."""
    earned: dict[str, object] = {
        "coordinator": stored.coordinator,
        "state": state,
        "amount_nano": stored.amount_nano,
    }
    paid: dict[str, object] = {
        "day": day,
        "coordinator": stored.coordinator,
        "model": stored.model,
        "device": stored.device,
        "amount_nano": stored.amount_nano,
        "paid_nano": paid_nano,
    }
    old: dict[str, object] = {"first_day": day - DAYS_KEPT + 1}
    fold = Change(_FOLD, old, then=Change(_FOLDED, old))
    count = Change(_EARN, earned, then=Change(_PAY, paid, then=fold))
    return Change(_FORGET, {"lease_id": stored.lease_id}, then=count)


def refuse(lease_id: LeaseId, *, reason: str, keep: int) -> Change:
    """The coordinator will never take it. It stays as evidence for a dispute, in place of the
    oldest beyond `keep`."""
    return Change(
        _REFUSE,
        {"lease_id": lease_id, "refused": REFUSED, "reason": reason[:_REASON_CHARS_MAX]},
        then=Change(_PRUNE, {"refused": REFUSED, "keep": keep}),
    )


def _run(connection: sqlite3.Connection, change: Change) -> None:
    changed = connection.execute(change.statement, change.values).rowcount
    if changed and change.then is not None:
        _run(connection, change.then)


def _keep_private(path: Path) -> None:
    try:
        keep_database_private(path)
    except OSError as error:
        raise OutboxError(f"the outbox {path} cannot be used: {error}") from error


def _translate(error: sqlite3.Error, place: str) -> OutboxError:
    code = getattr(error, "sqlite_errorcode", None)
    if code == sqlite3.SQLITE_FULL:
        return OutboxFullError(f"the disk under the outbox {place} is full: free some space")
    is_failed_read = code in (sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ)
    if isinstance(code, int) and code & 0xFF == sqlite3.SQLITE_IOERR and not is_failed_read:
        # Some file systems report a full disk as a failed write or sync.
        return OutboxFullError(f"the outbox {place} cannot be written: {error}")
    return OutboxError(f"the outbox {place} cannot be used: {error}")
