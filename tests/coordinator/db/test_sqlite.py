"""What is particular to SQLite: durability, locking, and the names of its errors."""

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import make_url, text

from coordinator.db.accounts import find_account, open_account
from coordinator.db.engine import Connection, InlineRunner, ThreadRunner, open_database
from coordinator.db.sqlite import is_memory, translate_error
from coordinator.errors import (
    ConstraintError,
    DamagedBooksError,
    StorageBusyError,
    StorageError,
    StorageFullError,
)
from coordinator.ledger.accounts import Account, AccountId, AccountKind
from protocol.errors import Code
from tests.coordinator.ledger_makers import opened

CAROL = Account(AccountId("carol"), AccountKind.CLIENT)


async def test_a_file_database_refuses_to_write_on_the_reading_side(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path / 'capa.db'}", ThreadRunner()) as database:
        with pytest.raises(StorageError, match="readonly"):
            await database.read(open_account, CAROL)
        assert await database.read(find_account, CAROL.id) is None


async def test_commits_are_made_durable_before_they_are_acknowledged(tmp_path: Path) -> None:
    def settings(conn: Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "foreign_keys")
        return [conn.scalar(text(f"PRAGMA {name}")) for name in names]

    with opened(f"sqlite:///{tmp_path / 'capa.db'}") as database:
        full = 2
        assert await database.write(settings) == ["wal", full, 1]


async def test_another_process_that_keeps_the_lock_is_named(tmp_path: Path) -> None:
    path = tmp_path / "capa.db"
    with opened(f"sqlite:///{path}") as database:
        await database.write(lambda conn: conn.exec_driver_sql("PRAGMA busy_timeout = 20").all())
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StorageBusyError, match="another process") as refused:
            await database.write(open_account, CAROL)
        assert refused.value.code is Code.BUSY
        other.execute("ROLLBACK")
        other.close()
        await database.write(open_account, CAROL)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "capa.db"
    path.write_bytes(b"certainly not a database" * 100)
    with pytest.raises(StorageError, match="not a database"):
        open_database(f"sqlite:///{path}", InlineRunner())
    assert path.read_bytes().startswith(b"certainly"), "and is left alone"


@pytest.mark.parametrize(
    ("url", "expected"),
    [("sqlite://", True), ("sqlite:///:memory:", True), ("sqlite:///capa.db", False)],
)
def test_a_database_in_memory_is_recognized(url: str, expected: bool) -> None:
    assert is_memory(make_url(url)) is expected


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (sqlite3.SQLITE_FULL, StorageFullError),
        (sqlite3.SQLITE_BUSY, StorageBusyError),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StorageBusyError),
        (sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY, ConstraintError),
        (sqlite3.SQLITE_IOERR_FSYNC, StorageError),
        (sqlite3.SQLITE_CORRUPT, DamagedBooksError),
    ],
)
def test_every_kind_of_failure_has_its_name(code: int, error: type[StorageError]) -> None:
    original = sqlite3.OperationalError("as SQLite says")
    original.sqlite_errorcode = code
    assert type(translate_error(original)) is error
