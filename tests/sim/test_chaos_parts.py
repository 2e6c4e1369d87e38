"""What a run of chaos decides and how it judges, without any process."""

import random
import sqlite3
import tempfile
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import Table, create_engine, insert

from coordinator.db import schema
from coordinator.db.schema import metadata
from sim.chaos.books import BooksVerdict, judge_books
from sim.chaos.plan import Blow, Victim, draw_plan
from sim.chaos.stock_retries import is_retried, wait_s


def test_the_default_plan_kills_coordinator_and_nodes_sixteen_times_each() -> None:
    plan = draw_plan(1, lasts_s=660.0)
    for target in Victim:
        kills = [blow for blow in plan if (blow.blow, blow.target) == (Blow.KILL, target)]
        assert len(kills) == 16
        assert all(0 < blow.at_s < 660 for blow in kills)


def test_a_short_plan_has_every_kind_of_blow() -> None:
    kinds = {(blow.blow, blow.target) for blow in draw_plan(1, lasts_s=10.0)}
    assert kinds == {(blow, target) for blow in Blow for target in Victim}


def test_a_seed_decides_the_plan() -> None:
    assert draw_plan(5, lasts_s=60.0) == draw_plan(5, lasts_s=60.0)
    assert draw_plan(5, lasts_s=60.0) != draw_plan(6, lasts_s=60.0)


@pytest.mark.parametrize(
    ("status", "headers", "expected"),
    [
        (500, {}, True),
        (503, {"retry-after": "3"}, True),
        (503, {"retry-after": "121"}, False),
        (429, {}, True),
        (409, {}, True),
        (400, {}, False),
        (404, {}, False),
        (404, {"x-should-retry": "true"}, True),
        (503, {"x-should-retry": "false"}, False),
    ],
)
def test_the_stock_client_asks_again(status: int, headers: dict[str, str], expected: bool) -> None:
    assert is_retried(status, headers) is expected


@pytest.mark.parametrize(
    ("retry", "headers", "least_s", "most_s"),
    [
        (0, {}, 0.375, 0.5),
        (1, {}, 0.75, 1.0),
        (9, {}, 6.0, 8.0),
        (0, {"retry-after": "3"}, 3.0, 3.0),
        (0, {"retry-after-ms": "250", "retry-after": "3"}, 0.25, 0.25),
        (0, {"retry-after": "soon"}, 0.375, 0.5),
        (0, {"retry-after": "inf"}, 0.375, 0.5),
    ],
)
def test_the_stock_client_waits(
    retry: int, headers: dict[str, str], least_s: float, most_s: float
) -> None:
    rng = random.Random(1)
    assert all(least_s <= wait_s(retry, headers, rng) <= most_s for _ in range(100))


# One job of one client, held, captured and paid out: 100 for the node's 95 and the fee of 5.
_ACCOUNTS = (
    {"id": "issuance", "kind": "system", "may_overdraw": 1, "debits_posted": 1_000},
    {"id": "client", "kind": "client", "debits_posted": 100, "credits_posted": 1_000},
    {"id": "escrow", "kind": "system", "debits_posted": 100, "credits_posted": 100},
    {"id": "node", "kind": "node", "credits_posted": 95},
    {"id": "operator", "kind": "system", "credits_posted": 5},
)
_TRANSFERS: tuple[tuple[str, str, str, int, str, str, dict[str, object]], ...] = (
    ("T1", "issuance", "client", 1_000, "posted", "credit", {}),
    ("T2", "client", "escrow", 300, "pending", "hold", {"job_id": "J", "timeout_at_ms": 9}),
    ("T3", "client", "escrow", 100, "post", "capture", {"job_id": "J", "pending_id": "T2"}),
    ("T4", "escrow", "node", 95, "posted", "capture_node", {"job_id": "J"}),
    ("T5", "escrow", "operator", 5, "posted", "capture_fee", {"job_id": "J"}),
)
_JOB = {"client": "client", "job_id": "J", "state": "settled", "ended_at_ms": 2}
_LEASE = _JOB | {"lease_id": "L", "node": "node", "hold_id": "T2", "ceiling_nano": 300}
_RECEIPT = _LEASE | {"amount_nano": 100, "settled_at_ms": 2}
_OUTBOX = """
CREATE TABLE receipts (lease_id TEXT, state TEXT);
CREATE TABLE earnings (state TEXT, jobs INTEGER);
INSERT INTO earnings VALUES ('settled', 1);
"""


def write_sound_books(path: Path) -> None:
    engine = create_engine(f"sqlite:///{path}")
    metadata.create_all(engine)
    with engine.begin() as connection:
        # Short names instead of ids.
        connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        for account in _ACCOUNTS:
            connection.execute(insert(schema.accounts).values(row_of(schema.accounts, account)))
        for number, (name, debit, credit, nano, kind, code, more) in enumerate(_TRANSFERS, 1):
            plain = {"sequence": number, "created_at_ns": number, "id": name, "debit": debit}
            plain |= {"credit": credit, "amount_nano": nano, "kind": kind, "code": code, **more}
            connection.execute(insert(schema.transfers).values(row_of(schema.transfers, plain)))
        for table, row in (
            (schema.jobs, _JOB),
            (schema.leases, _LEASE),
            (schema.receipts, _RECEIPT),
        ):
            connection.execute(insert(table).values(row_of(table, row)))
    engine.dispose()


def row_of(table: Table, given: Mapping[str, object]) -> dict[str, object]:
    """What is given, as far as the table has it, and something for what it must have."""
    fillers = {int: 0, str: "", bytes: bytes(32)}
    return {
        column.name: given.get(column.name, fillers[column.type.python_type])
        for column in table.columns
        if column.name in given or not column.nullable
    }


Judge = Callable[..., BooksVerdict]


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    """Judges sound books after `damage` was done to them, or to the outbox of the only node."""

    def judged(damage: str = "", *, outbox_damage: str = "", answered: str = "J") -> BooksVerdict:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        books, outbox = folder / "books.sqlite", folder / "outbox.sqlite"
        write_sound_books(books)
        for path, script in ((books, damage), (outbox, _OUTBOX + outbox_damage)):
            with closing(sqlite3.connect(path)) as connection:
                # As whatever has damaged them: without the rules that hold the books together.
                connection.executescript("PRAGMA ignore_check_constraints = ON;" + script)
        return judge_books(books, {"node": outbox}, answered.split())

    return judged


def test_sound_books_have_no_findings(judge: Judge) -> None:
    verdict = judge()
    assert verdict.findings == ()
    assert (verdict.double_captures, verdict.acknowledged_lost) == (0, 0)
    assert (verdict.billed_nano, verdict.billed_unanswered_nano) == (100, 0)


def test_a_receipt_that_was_paid_in_part_is_sound(judge: Judge) -> None:
    assert judge("UPDATE receipts SET state = 'disputed', settled_at_ms = NULL;").findings == ()


def test_what_was_billed_without_an_answer_is_told(judge: Judge) -> None:
    assert judge(answered="").billed_unanswered_nano == 100


_DROP_TRIGGERS = (
    "DROP TRIGGER transfers_refuse_update; DROP TRIGGER transfers_refuse_delete; "
    "DROP INDEX uq_transfers_pending_id;"
)


@pytest.mark.parametrize(
    "damage",
    [
        "INSERT INTO transfers SELECT 6, 6, 'T6', debit, credit, amount_nano, kind, code, "
        "pending_id, timeout_at_ms, job_id, chain_hash FROM transfers WHERE id = 'T3';",
        "INSERT INTO transfers SELECT 6, 6, 'T6', debit, credit, amount_nano, 'posted', code, "
        "NULL, NULL, job_id, chain_hash FROM transfers WHERE id = 'T3';",
        "INSERT INTO transfers SELECT 6, 6, 'T6', debit, credit, amount_nano, kind, code, "
        "NULL, NULL, job_id, chain_hash FROM transfers WHERE id = 'T4';",
        "INSERT INTO transfers SELECT 6, 6, 'T6', debit, credit, amount_nano, 'posted', "
        "'goodwill', NULL, NULL, job_id, chain_hash FROM transfers WHERE id = 'T3';",
    ],
)
def test_money_that_was_taken_twice_is_found(judge: Judge, damage: str) -> None:
    assert judge(_DROP_TRIGGERS + damage).double_captures > 0


def test_an_answer_without_a_receipt_is_lost(judge: Judge) -> None:
    assert judge("DELETE FROM receipts;").acknowledged_lost == 2, "the answer, and the receipt"
    assert judge(answered="J K").acknowledged_lost == 1


def test_a_receipt_that_the_node_was_told_is_safe_must_be_in_the_books(judge: Judge) -> None:
    pending = "INSERT INTO receipts VALUES ('M', 'pending');"
    assert judge(outbox_damage=pending).acknowledged_lost == 1
    assert judge(outbox_damage="UPDATE earnings SET jobs = 3;").acknowledged_lost == 2


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE transfers SET sequence = 9 WHERE id = 'T5';",
        "UPDATE transfers SET created_at_ns = 0 WHERE id = 'T4';",
        "UPDATE accounts SET debits_posted = 99 WHERE id = 'client';",
        "UPDATE accounts SET credits_posted = 96 WHERE id = 'node';",
        "UPDATE accounts SET debits_pending = 1 WHERE id = 'client';",
        "UPDATE accounts SET credits_posted = 99 WHERE id = 'client';",
        "UPDATE transfers SET amount_nano = 94 WHERE id = 'T4';",
        "UPDATE transfers SET amount_nano = 301 WHERE id = 'T3';",
        "DELETE FROM transfers WHERE id = 'T3';",
        "INSERT INTO open_holds (transfer_id, timeout_at_ms, counted_nano) VALUES ('T2', 9, 0);",
        "UPDATE leases SET state = 'open', ended_at_ms = NULL;",
        "UPDATE leases SET state = 'released';",
        "UPDATE leases SET state = 'expired';",
        "UPDATE receipts SET amount_nano = 101;",
        "UPDATE receipts SET state = 'pending', settled_at_ms = NULL;",
        "UPDATE jobs SET state = 'expired';",
        "UPDATE jobs SET ended_at_ms = NULL;",
        "PRAGMA foreign_keys = OFF; DELETE FROM jobs;",
    ],
)
def test_rows_that_contradict_each_other_are_found(judge: Judge, damage: str) -> None:
    assert judge(_DROP_TRIGGERS + damage).findings
