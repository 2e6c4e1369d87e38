"""Transactions by way of both runners, and what is promised about them."""

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
)
from coordinator.errors import (
    ConstraintError,
    InvalidRowError,
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


@runners
@places
async def test_a_program_may_mix_both_ways_to_write(
    runner: type[Runner], place: str, tmp_path: Path
) -> None:
    with opened(url_of(place, tmp_path), runner()) as database:
        for number in range(3):
            with database.transaction() as conn:
                open_account(conn, CAROL._replace(id=AccountId(f"a{number}")))
            await database.write(open_account, CAROL._replace(id=AccountId(f"b{number}")))
        for number in range(3):
            assert await database.read(find_account, AccountId(f"a{number}"))
            assert await database.read(find_account, AccountId(f"b{number}"))


async def test_a_read_does_not_wait_for_a_write(tmp_path: Path) -> None:
    with opened(f"sqlite:///{tmp_path / 'capa.db'}", ThreadRunner()) as database:
        may_end = threading.Event()

        def slow_write(conn: Connection) -> None:
            open_account(conn, CAROL)
            assert may_end.wait(60)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.write, slow_write)
            with trio.fail_after(30):
                assert await database.read(find_account, CAROL.id) is None, "not committed yet"
            may_end.set()
        assert await database.read(find_account, CAROL.id) == CAROL


async def test_a_transaction_that_has_begun_is_completed_when_its_caller_is_cancelled() -> None:
    with opened("sqlite://", ThreadRunner()) as database:
        begun, may_end = threading.Event(), threading.Event()

        def slow_write(conn: Connection) -> None:
            open_account(conn, CAROL)
            begun.set()
            assert may_end.wait(60)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(database.write, slow_write)
            await trio.to_thread.run_sync(begun.wait, 60)
            nursery.cancel_scope.cancel()
            may_end.set()
        assert await database.read(find_account, CAROL.id) == CAROL


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
