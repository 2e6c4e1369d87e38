"""Transactions by way of both runners, and what is promised about them."""

import sqlite3
import threading
from pathlib import Path

import pytest
import trio
from sqlalchemy import text

from coordinator.db.accounts import find_account, open_account
from coordinator.db.engine import (
    Connection,
    Database,
    InlineRunner,
    Runner,
    ThreadRunner,
    open_database,
)
from coordinator.errors import (
    ConstraintError,
    InvalidRowError,
    StorageBusyError,
    StorageError,
)
from coordinator.ledger.accounts import Account, AccountId, AccountKind
from protocol.errors import Code
from tests.coordinator.ledger_makers import opened

CAROL = Account(AccountId("carol"), AccountKind.CLIENT)

runners = pytest.mark.parametrize("runner", [ThreadRunner, InlineRunner])
places = pytest.mark.parametrize("place", ["memory", "file"])


def url_of(place: str, folder: Path) -> str:
    return "sqlite://" if place == "memory" else f"sqlite:///{folder / 'capa.db'}"


def insert_twice(conn: Connection) -> None:
    open_account(conn, CAROL)
    conn.execute(text("INSERT INTO accounts SELECT * FROM accounts WHERE id = 'carol'"))


@runners
@places
async def test_a_write_is_seen_by_the_next_read(
    runner: type[Runner], place: str, tmp_path: Path
) -> None:
    with opened(url_of(place, tmp_path), runner()) as database:
        assert await database.write(open_account, CAROL) == CAROL
        assert await database.read(find_account, CAROL.id) == CAROL


@runners
@places
async def test_what_fails_leaves_nothing_and_the_next_write_works(
    runner: type[Runner], place: str, tmp_path: Path
) -> None:
    with opened(url_of(place, tmp_path), runner()) as database:
        with pytest.raises(ConstraintError, match="UNIQUE") as refused:
            await database.write(insert_twice)
        assert refused.value.code is Code.ALREADY_EXISTS
        assert await database.read(find_account, CAROL.id) is None
        await database.write(open_account, CAROL)


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


async def test_a_read_does_not_wait_for_a_write(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path / 'capa.db'}", ThreadRunner()) as database:
        may_end = threading.Event()

        def slow_write(conn: Connection) -> None:
            open_account(conn, CAROL)
            assert may_end.wait(10)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.write, slow_write)
            with trio.fail_after(5):
                assert await database.read(find_account, CAROL.id) is None, "not committed yet"
            may_end.set()
        assert await database.read(find_account, CAROL.id) == CAROL


async def test_a_transaction_that_has_begun_is_completed_when_its_caller_is_cancelled() -> None:
    with opened("sqlite://", ThreadRunner()) as database:
        begun, may_end = threading.Event(), threading.Event()

        def slow_write(conn: Connection) -> None:
            open_account(conn, CAROL)
            begun.set()
            assert may_end.wait(10)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.write, slow_write)
            await trio.to_thread.run_sync(begun.wait, 10)
            nursery.cancel_scope.cancel()
            may_end.set()
        assert await database.read(find_account, CAROL.id) == CAROL


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


@pytest.mark.parametrize("label", ["\ud800", "lone \udcff surrogate"])
async def test_text_that_is_not_unicode_is_refused(label: str) -> None:
    with opened("sqlite://") as database:
        with pytest.raises(InvalidRowError):
            await database.write(open_account, CAROL._replace(label=label))
        await database.write(open_account, CAROL)


@pytest.mark.parametrize("number", [2**63, -(2**63) - 1])
async def test_numbers_beyond_64_bits_are_refused(number: int) -> None:
    with opened("sqlite://") as database:
        with pytest.raises(InvalidRowError):
            await database.write(open_account, CAROL._replace(created_at_ms=number))
        await database.write(open_account, CAROL)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "capa.db"
    path.write_bytes(b"certainly not a database" * 100)
    with pytest.raises(StorageError, match="not a database"):
        open_database(f"sqlite:///{path}", InlineRunner())
    assert path.read_bytes().startswith(b"certainly"), "and is left alone"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("nonsense", "cannot be read"),
        ("postgresql://localhost/capa", "no support for postgresql yet"),
        ("sqlite:////no/such/folder/capa.db", "does not exist"),
    ],
)
def test_an_unusable_url_is_explained(url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        Database(url, InlineRunner())


def test_a_password_in_a_bad_url_is_not_repeated() -> None:
    with pytest.raises(StorageError) as refused:
        Database("postgresql+secret//capa:hunter2@host", InlineRunner())
    assert "hunter2" not in str(refused.value)
