"""The audit finds whatever someone with a database shell may have done to the books."""

from collections.abc import Iterator

import pytest
from sqlalchemy import text

import coordinator.audit.books
from coordinator.audit.books import audit
from coordinator.audit.findings import Check
from coordinator.db.engine import Connection
from coordinator.db.writer import post_one
from coordinator.ledger.postings import capture, hold
from tests.coordinator.ledger_makers import (
    ALICE,
    BOB,
    HOUR_MS,
    NODE,
    START_MS,
    Ulids,
    funds_of,
    memory_books,
)

TIMEOUT_MS = START_MS + HOUR_MS


@pytest.fixture
def conn() -> Iterator[Connection]:
    """Books with two credits, an open hold of Alice's (sequence 3), and a captured one of Bob's
    (4 to 7); nothing any more keeps them from being damaged."""
    ulid = Ulids()
    with memory_books() as database, database.transaction() as conn:
        post_one(conn, hold(funds_of(ulid()), timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
        funds = funds_of(ulid(), client=BOB)
        post_one(conn, hold(funds, timeout_at_ms=TIMEOUT_MS), now_ms=START_MS)
        post_one(conn, capture(funds, 60, NODE, fee_bps=500), now_ms=START_MS)
        for trigger in ("transfers_refuse_update", "transfers_refuse_delete"):
            conn.execute(text(f"DROP TRIGGER {trigger}"))
        # Foreign keys can only be switched between transactions.
        conn.exec_driver_sql("COMMIT")
        conn.exec_driver_sql("PRAGMA foreign_keys = OFF")
        conn.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        conn.exec_driver_sql("BEGIN")
        yield conn
        conn.get_transaction().rollback()  # type: ignore[union-attr]  # there is one


TEARS_LEGS = (
    "UPDATE transfers SET amount_nano = -5 WHERE sequence = 7",
    "UPDATE transfers SET amount_nano = 101 WHERE sequence = 5",
    "UPDATE transfers SET kind = 'void' WHERE sequence = 5",
    "DELETE FROM transfers WHERE sequence = 7",
)


def test_good_books_are_green_and_counted(conn: Connection) -> None:
    report = audit(conn)
    assert report.is_green
    assert (report.transfers, report.accounts, report.open_holds) == (7, 7, 1)
    assert (report.issued_nano, report.held_nano) == (2_000, 100)


@pytest.mark.parametrize(
    ("damage", "checks"),
    [
        (
            "UPDATE accounts SET credits_posted = 1001 WHERE id = 'alice'",
            {
                Check.BALANCE_IS_NOT_FOLD,
                Check.DEBITS_ARE_NOT_CREDITS,
            },
        ),
        (
            "UPDATE accounts SET debits_pending = 0, credits_pending = 0",
            {Check.BALANCE_IS_NOT_FOLD},
        ),
        (
            "UPDATE accounts SET debits_pending = debits_pending + 1 WHERE id = 'bob'",
            {
                Check.BALANCE_IS_NOT_FOLD,
                Check.DEBITS_ARE_NOT_CREDITS,
            },
        ),
        ("UPDATE transfers SET sequence = 70 WHERE sequence = 7", {Check.SEQUENCE_HAS_GAP}),
        ("UPDATE transfers SET created_at_ns = 5 WHERE sequence = 3", {Check.TIME_GOES_BACKWARDS}),
        ("UPDATE transfers SET amount_nano = 99 WHERE sequence = 3", {Check.BALANCE_IS_NOT_FOLD}),
        (
            "UPDATE transfers SET amount_nano = -5 WHERE sequence = 7",
            {
                Check.TRANSFER_MALFORMED,
                Check.BALANCE_IS_NOT_FOLD,
            },
        ),
        ("UPDATE transfers SET id = 'short' WHERE sequence = 1", {Check.TRANSFER_MALFORMED}),
        (
            "UPDATE transfers SET credit = debit WHERE sequence = 1",
            {
                Check.TRANSFER_MALFORMED,
                Check.BALANCE_IS_NOT_FOLD,
                Check.ACCOUNT_OVERDRAWN,
            },
        ),
        (
            "UPDATE transfers SET timeout_at_ms = NULL WHERE sequence = 3",
            {
                Check.TRANSFER_MALFORMED,
                Check.OPEN_HOLDS_DIFFER,
            },
        ),
        (
            "UPDATE transfers SET pending_id = NULL WHERE sequence = 5",
            {
                Check.TRANSFER_MALFORMED,
                Check.BALANCE_IS_NOT_FOLD,
                Check.OPEN_HOLDS_DIFFER,
            },
        ),
        (
            "UPDATE transfers SET credit = 'ghost' WHERE sequence = 6",
            {
                Check.ACCOUNT_MISSING,
                Check.BALANCE_IS_NOT_FOLD,
            },
        ),
        (
            "UPDATE transfers SET amount_nano = 10 WHERE sequence = 2",
            {
                Check.ACCOUNT_OVERDRAWN,
                Check.BALANCE_IS_NOT_FOLD,
            },
        ),
        (
            "UPDATE transfers SET amount_nano = 101 WHERE sequence = 5",
            {
                Check.HOLD_RESOLVED_WRONGLY,
                Check.BALANCE_IS_NOT_FOLD,
            },
        ),
        (
            "UPDATE transfers SET kind = 'void' WHERE sequence = 5",
            {
                Check.HOLD_RESOLVED_WRONGLY,
                Check.BALANCE_IS_NOT_FOLD,
                Check.ACCOUNT_OVERDRAWN,
            },
        ),
        (
            "UPDATE transfers SET debit = 'alice' WHERE sequence = 5",
            {
                Check.HOLD_RESOLVED_WRONGLY,
                Check.BALANCE_IS_NOT_FOLD,
            },
        ),
        (
            "UPDATE transfers SET timeout_at_ms = 1 WHERE sequence = 4",
            set(),
        ),
        (
            "DELETE FROM transfers WHERE sequence = 4",
            {
                Check.SEQUENCE_HAS_GAP,
                Check.HOLD_RESOLVED_WRONGLY,
            },
        ),
        (
            "DELETE FROM transfers WHERE sequence = 7",
            {
                Check.BALANCE_IS_NOT_FOLD,
            },
        ),
        ("DELETE FROM open_holds", {Check.OPEN_HOLDS_DIFFER}),
        ("UPDATE open_holds SET timeout_at_ms = 5", {Check.OPEN_HOLDS_DIFFER}),
        (
            "INSERT INTO open_holds SELECT id, 5, 1, NULL FROM transfers WHERE sequence = 4",
            {
                Check.OPEN_HOLDS_DIFFER,
            },
        ),
        (
            "INSERT INTO failed_ids SELECT id, 5 FROM transfers WHERE sequence = 4",
            {
                Check.FAILED_ID_HAPPENED,
            },
        ),
        (
            "DELETE FROM accounts WHERE id = 'operator'",
            {
                Check.ACCOUNT_MISSING,
                Check.DEBITS_ARE_NOT_CREDITS,
            },
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_damage_is_found_and_named(conn: Connection, damage: str, checks: set[Check]) -> None:
    assert conn.execute(text(damage)).rowcount > 0
    if "UPDATE transfers" in damage or (damage.endswith("sequence = 4") and "DELETE" in damage):
        checks = checks | {Check.HASH_CHAIN_BROKEN}
    if damage.startswith(TEARS_LEGS):
        checks = checks | {Check.CAPTURE_LEGS_DIFFER}
    assert {finding.check for finding in audit(conn).findings} == checks


def test_a_hold_that_is_resolved_twice_is_found(conn: Connection) -> None:
    conn.execute(text("DROP INDEX uq_transfers_pending_id"))
    conn.execute(
        text(
            "INSERT INTO transfers SELECT 8, created_at_ns + 9, :id, debit, credit, amount_nano, "
            "'post', code, pending_id, NULL, job_id, chain_hash FROM transfers WHERE sequence = 5"
        ),
        {"id": "0" * 26},
    )
    checks = {finding.check for finding in audit(conn).findings}
    assert Check.HOLD_RESOLVED_WRONGLY in checks


def test_an_id_that_is_used_twice_is_found(conn: Connection) -> None:
    conn.execute(text("DROP INDEX uq_transfers_id"))
    first = "(SELECT id FROM transfers WHERE sequence = 1)"
    conn.execute(text(f"UPDATE transfers SET id = {first} WHERE sequence = 2"))
    checks = {finding.check for finding in audit(conn).findings}
    assert checks == {Check.ID_USED_TWICE, Check.HASH_CHAIN_BROKEN}


def test_money_that_stays_in_escrow_is_found(conn: Connection) -> None:
    conn.execute(text("UPDATE transfers SET credit = 'escrow' WHERE sequence = 1"))
    conn.execute(
        text("UPDATE accounts SET credits_posted = credits_posted + 1000 WHERE id = 'escrow'")
    )
    conn.execute(text("UPDATE accounts SET credits_posted = 0 WHERE id = 'alice'"))
    checks = {finding.check for finding in audit(conn).findings}
    assert checks == {
        Check.ESCROW_KEEPS_MONEY,
        Check.ACCOUNT_OVERDRAWN,
        Check.HASH_CHAIN_BROKEN,
    }


def test_books_that_are_wrong_everywhere_are_not_listed_without_end(
    conn: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(coordinator.audit.books, "_FINDINGS_MAX", 3)
    conn.execute(text("UPDATE transfers SET created_at_ns = 7, amount_nano = 1"))
    findings = audit(conn).findings
    assert len(findings) == 4
    assert findings[-1].check is Check.MORE_FINDINGS


def test_a_finding_names_its_subject(conn: Connection) -> None:
    conn.execute(text("UPDATE accounts SET label = 'x', debits_posted = 7 WHERE id = 'alice'"))
    first = audit(conn).findings[0]
    assert first.subject == ALICE
    assert first.message == "debits_posted is 7, its transfers make 0"
