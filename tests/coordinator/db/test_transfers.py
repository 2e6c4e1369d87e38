"""The books as they are read: pages, order, and what one account sees."""

from collections.abc import Iterator

import pytest

from coordinator.db.engine import Connection
from coordinator.db.transfers import (
    find_transfers,
    iterate_transfers,
    list_due_holds,
    list_transfers,
)
from coordinator.db.writer import post_one
from coordinator.ledger.accounts import AccountId
from coordinator.ledger.machine import Chain
from coordinator.ledger.transfers import RESOLVING_KINDS, TRANSIENT_RESULTS, Result, TransferKind
from protocol.ids import TransferId
from tests.coordinator.ledger_makers import (
    ALICE,
    BOB,
    START_MS,
    Ulids,
    memory_books,
    pending,
    posted,
)


@pytest.fixture
def conn() -> Iterator[Connection]:
    """Two credits, then Alice pays Bob 1, 2, 3 … 10."""
    ulid = Ulids()
    with memory_books() as database, database.transaction() as conn:
        for amount_nano in range(1, 11):
            chain = Chain((posted(ulid(), ALICE, BOB, amount_nano),))
            post_one(conn, chain, now_ms=START_MS)
        yield conn


def test_transfers_are_listed_newest_first_in_pages(conn: Connection) -> None:
    pages, before = [], None
    while page := list_transfers(conn, before=before, limit=5):
        pages.append([recorded.sequence for recorded in page])
        before = page[-1].sequence
    assert pages == [[12, 11, 10, 9, 8], [7, 6, 5, 4, 3], [2, 1]]


def test_an_account_sees_its_own_transfers_whichever_side_it_is_on(conn: Connection) -> None:
    seen = list_transfers(conn, account=AccountId(BOB))
    assert [recorded.sequence for recorded in seen] == [*range(12, 2, -1), 2]
    assert list_transfers(conn, account=AccountId("ghost")) == []


@pytest.mark.parametrize("page", [1, 5, 12, 1_000])
def test_all_transfers_are_read_in_order_whatever_the_page(conn: Connection, page: int) -> None:
    read = list(iterate_transfers(conn, page=page))
    assert [recorded.sequence for recorded in read] == list(range(1, 13))
    assert [recorded.transfer.amount_nano for recorded in read[2:]] == list(range(1, 11))
    times = [recorded.created_at_ns for recorded in read]
    assert times == sorted(set(times))


def test_a_transfer_is_found_as_it_was_submitted(conn: Connection) -> None:
    hold = pending(Ulids(count=99)(), ALICE, BOB, 4)
    post_one(conn, Chain((hold,)), now_ms=START_MS)
    assert find_transfers(conn, [hold.id, TransferId("absent")]) == {hold.id: hold}
    (found,) = list_transfers(conn, limit=1)
    assert (found.sequence, found.transfer) == (13, hold)


def test_due_holds_come_oldest_first_and_no_more_than_asked(conn: Connection) -> None:
    ulid = Ulids(count=50)
    holds = [
        pending(ulid(), ALICE, BOB, 1, timeout_at_ms=START_MS + wait_ms) for wait_ms in (30, 10, 20)
    ]
    for hold in holds:
        post_one(conn, Chain((hold,)), now_ms=START_MS)
    assert list_due_holds(conn, START_MS + 9, limit=9) == []
    due = list_due_holds(conn, START_MS + 30, limit=2)
    assert [hold.timeout_at_ms for hold in due] == [START_MS + 10, START_MS + 20]


def test_kinds_and_results_are_sorted_into_classes() -> None:
    assert {TransferKind.PENDING, TransferKind.POSTED} == set(TransferKind) - RESOLVING_KINDS
    assert {result for result in Result if result.is_success} == {Result.CREATED, Result.EXISTS}
    assert not any(result.is_success for result in TRANSIENT_RESULTS)
