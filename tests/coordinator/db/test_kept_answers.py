"""Answers that may be fetched again, as stored: claimed, answered, bounded, over."""

from collections.abc import Iterator

import pytest

from coordinator.db.engine import Database
from coordinator.db.kept_answers import (
    KeptBounds,
    claim_answer,
    expire_answers,
    find_answer,
    store_answer,
)
from protocol.ids import JobId, PeerId, derive_ulid
from tests.coordinator.ledger_makers import memory_books
from tests.coordinator.market_makers import NOW_MS, node

DIGEST = b"d" * 32
BOUNDS = KeptBounds(account_entries=3, account_bytes=100, entries=5, bytes=1_000)
JOB = JobId(derive_ulid("0" * 26, "test"))


@pytest.fixture
def database() -> Iterator[Database]:
    with memory_books() as database:
        yield database


def keep(database: Database, account: PeerId, name: str, size: int, *, at_ms: int = NOW_MS) -> None:
    with database.transaction() as conn:
        claim_answer(
            conn,
            account,
            name,
            DIGEST,
            JOB,
            now_ms=at_ms,
            expires_at_ms=at_ms + 10,
            bounds=BOUNDS,
        )
        if size:
            store_answer(
                conn, account, name, bytes(size), expires_at_ms=at_ms + 1_000, bounds=BOUNDS
            )


def kept(database: Database, account: PeerId, names: str, *, at_ms: int = NOW_MS) -> str:
    with database.transaction() as conn:
        found = [n for n in names if find_answer(conn, account, n, now_ms=at_ms) is not None]
    return "".join(found)


def test_a_name_is_claimed_once_until_it_is_over(database: Database) -> None:
    def claim(at_ms: int) -> bool:
        with database.transaction() as conn:
            found = claim_answer(
                conn,
                node(1),
                "a",
                DIGEST,
                JOB,
                now_ms=at_ms,
                expires_at_ms=at_ms + 10,
                bounds=BOUNDS,
            )
        return found is None

    assert claim(NOW_MS)
    assert not claim(NOW_MS + 9)
    assert claim(NOW_MS + 10)
    assert kept(database, node(2), "a") == ""


def test_the_oldest_answers_of_an_account_make_room(database: Database) -> None:
    for number, name in enumerate("abcd"):
        keep(database, node(1), name, 10, at_ms=NOW_MS + number)
    keep(database, node(2), "a", 10)
    assert kept(database, node(1), "abcd") == "bcd"
    keep(database, node(1), "e", 85, at_ms=NOW_MS + 5)
    assert kept(database, node(1), "bcde") == "de"
    assert kept(database, node(2), "a") == "a"


def test_a_claim_that_waits_for_its_answer_is_not_evicted(database: Database) -> None:
    for number, name in enumerate("abcde"):
        keep(database, node(1), name, 0, at_ms=NOW_MS + number)
    assert kept(database, node(1), "abcde") == "abcde"


def test_what_is_over_or_too_much_in_all_is_swept(database: Database) -> None:
    for number in range(7):
        keep(database, node(number), "a", 10, at_ms=NOW_MS + number)
    with database.transaction() as conn:
        assert expire_answers(conn, now_ms=NOW_MS, bounds=BOUNDS) == 0
    assert [kept(database, node(number), "a") for number in range(7)] == ["", "", *"aaaaa"]
    with database.transaction() as conn:
        assert expire_answers(conn, now_ms=NOW_MS + 1_003, bounds=BOUNDS) == 2
