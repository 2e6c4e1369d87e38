"""What a run of chaos decides and how it judges, without any process."""

import random
import sqlite3
import tempfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import create_engine

from coordinator.db.schema import metadata
from sim.chaos.books import BooksVerdict, judge_books
from sim.chaos.plan import Blow, Target, draw_plan
from sim.chaos.stock_retries import is_retried, wait_s


def test_the_default_plan_kills_coordinator_and_nodes_sixteen_times_each() -> None:
    plan = draw_plan(1, lasts_s=660.0)
    for target in Target:
        kills = [blow for blow in plan if (blow.blow, blow.target) == (Blow.KILL, target)]
        assert len(kills) == 16
        assert all(0 < blow.at_s < 660 for blow in kills)


def test_a_short_plan_has_every_kind_of_blow() -> None:
    kinds = {(blow.blow, blow.target) for blow in draw_plan(1, lasts_s=10.0)}
    assert kinds == {(blow, target) for blow in Blow for target in Target}


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
_BOOKS = """
INSERT INTO accounts (id, kind, may_overdraw, debits_pending, debits_posted, credits_pending,
                      credits_posted, label, created_at_ms) VALUES
    ('issuance', 'system', 1, 0, 1000, 0, 0, '', 0),
    ('client', 'client', 0, 0, 100, 0, 1000, '', 0),
    ('escrow', 'system', 0, 0, 100, 0, 100, '', 0), ('node', 'node', 0, 0, 0, 0, 95, '', 0),
    ('operator', 'system', 0, 0, 0, 0, 5, '', 0);
INSERT INTO transfers (sequence, created_at_ns, id, debit, credit, amount_nano, kind, code,
                       pending_id, timeout_at_ms, job_id, chain_hash) VALUES
    (1, 1, 'T1', 'issuance', 'client', 1000, 'posted', 'credit', NULL, NULL, NULL, zeroblob(32)),
    (2, 2, 'T2', 'client', 'escrow', 300, 'pending', 'hold', NULL, 9, 'J', zeroblob(32)),
    (3, 3, 'T3', 'client', 'escrow', 100, 'post', 'capture', 'T2', NULL, 'J', zeroblob(32)),
    (4, 4, 'T4', 'escrow', 'node', 95, 'posted', 'capture_node', NULL, NULL, 'J', zeroblob(32)),
    (5, 5, 'T5', 'escrow', 'operator', 5, 'posted', 'capture_fee', NULL, NULL, 'J', zeroblob(32));
INSERT INTO jobs (client, job_id, request, task, model_digest, objective, created_at_ms, digest,
                  attempt, state, ended_at_ms) VALUES
    ('client', 'J', x'00', 'causal_lm', 'd', 'price', 1, zeroblob(32), 0, 'settled', 2);
INSERT INTO leases (lease_id, job_id, attempt, client, node, coordinator, node_incarnation_ms,
                    window_tokens, envelope, hold_id, ceiling_nano, created_at_ms, expires_at_ms,
                    digest, state, ended_at_ms, signed_input_tokens, signed_output_tokens,
                    cut_by_us) VALUES
    ('L', 'J', 0, 'client', 'node', 'c', 1, 16, x'00', 'T2', 300, 1, 9, zeroblob(32), 'settled', 2,
     0, 0, 0);
INSERT INTO receipts (lease_id, client, job_id, node, receipt, amount_nano, input_tokens,
                      output_tokens, images, state, settled_at_ms, digest, received_at_ms) VALUES
    ('L', 'client', 'J', 'node', x'00', 100, 1, 1, 0, 'settled', 2, zeroblob(32), 2);
"""
_OUTBOX = """
CREATE TABLE receipts (lease_id TEXT, state TEXT);
CREATE TABLE earnings (state TEXT, jobs INTEGER);
INSERT INTO earnings VALUES ('settled', 1);
"""

Judge = Callable[..., BooksVerdict]


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    """Judges sound books after `damage` was done to them, or to the outbox of the only node."""

    def judged(damage: str = "", *, outbox_damage: str = "", answered: str = "J") -> BooksVerdict:
        folder = Path(tempfile.mkdtemp(dir=tmp_path))
        books, outbox = folder / "books.sqlite", folder / "outbox.sqlite"
        engine = create_engine(f"sqlite:///{books}")
        metadata.create_all(engine)
        engine.dispose()
        for path, script in ((books, _BOOKS + damage), (outbox, _OUTBOX + outbox_damage)):
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
        "INSERT INTO transfers VALUES (6, 6, 'T6', 'operator', 'escrow', 1, 'posted', 'goodwill', "
        "NULL, NULL, 'J', zeroblob(32));",
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
        "INSERT INTO open_holds VALUES ('T2', 9, 0, NULL);",
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
