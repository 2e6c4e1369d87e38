"""What lies on disk after the chaos, judged by plain SQL.

Nothing here imports the ledger, the database layer or the audit: a fault that these share with what
wrote the books would not be seen. Every query returns the rows that are wrong.
"""

import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Of one kind; the number of the others is told.
FINDINGS_TOLD_MAX = 20

# Money taken twice: for one hold, or for more receipts of a job than were paid. A disputed receipt
# is one that was paid for less than it says.
_DOUBLE_CAPTURES = {
    "hold resolved twice": """
        SELECT pending_id, count(*) FROM transfers WHERE pending_id IS NOT NULL
        GROUP BY pending_id HAVING count(*) > 1""",
    "job charged more often than its receipts say": """
        SELECT charged.job_id, charged.times, coalesce(paid.times, 0) FROM (
            SELECT job_id, count(*) AS times FROM transfers
            WHERE code IN ('capture', 'goodwill') GROUP BY job_id
        ) AS charged LEFT JOIN (
            SELECT job_id, count(*) AS times FROM receipts
            WHERE state IN ('settled', 'disputed') AND amount_nano > 0 GROUP BY job_id
        ) AS paid ON paid.job_id = charged.job_id
        WHERE charged.times > coalesce(paid.times, 0)""",
    "node paid more often than its client was charged": """
        SELECT job_id, sum(code = 'capture_node'), sum(code IN ('capture', 'goodwill'))
        FROM transfers GROUP BY job_id
        HAVING sum(code = 'capture_node') > sum(code IN ('capture', 'goodwill'))""",
}

_WRONG = {
    "foreign key": "PRAGMA foreign_key_check",
    "sequence has a gap": """
        SELECT sequence FROM transfers AS t WHERE sequence > (SELECT min(sequence) FROM transfers)
        AND NOT EXISTS (SELECT 1 FROM transfers AS p WHERE p.sequence = t.sequence - 1)""",
    "time goes backwards": """
        SELECT t.sequence FROM transfers AS t JOIN transfers AS p ON p.sequence = t.sequence - 1
        WHERE t.created_at_ns < p.created_at_ns""",
    "posted debits are not the sum of transfers": """
        SELECT id, debits_posted FROM accounts AS a WHERE debits_posted <> (
            SELECT coalesce(sum(amount_nano), 0) FROM transfers
            WHERE debit = a.id AND kind IN ('posted', 'post'))""",
    "posted credits are not the sum of transfers": """
        SELECT id, credits_posted FROM accounts AS a WHERE credits_posted <> (
            SELECT coalesce(sum(amount_nano), 0) FROM transfers
            WHERE credit = a.id AND kind IN ('posted', 'post'))""",
    "pending debits are not the open holds": """
        SELECT id, debits_pending FROM accounts AS a WHERE debits_pending <> (
            SELECT coalesce(sum(amount_nano), 0) FROM transfers AS h
            WHERE debit = a.id AND kind = 'pending'
            AND NOT EXISTS (SELECT 1 FROM transfers AS r WHERE r.pending_id = h.id))""",
    "account overdrawn": """
        SELECT id FROM accounts WHERE may_overdraw = 0
        AND debits_pending + debits_posted > credits_posted""",
    "debits are not credits": """
        SELECT sum(debits_posted), sum(credits_posted) FROM accounts
        HAVING sum(debits_posted) <> sum(credits_posted)""",
    "escrow keeps money": """
        SELECT id, credits_posted - debits_posted FROM accounts
        WHERE id = 'escrow' AND credits_posted <> debits_posted""",
    "captured more than held": """
        SELECT h.id, h.amount_nano, p.amount_nano FROM transfers AS p
        JOIN transfers AS h ON h.id = p.pending_id
        WHERE p.kind = 'post' AND p.amount_nano > h.amount_nano""",
    "what was charged is not what was paid out": """
        SELECT job_id, sum(CASE WHEN code IN ('capture', 'goodwill') THEN amount_nano ELSE 0 END),
               sum(CASE WHEN code IN ('capture_node', 'capture_fee') THEN amount_nano ELSE 0 END)
        FROM transfers WHERE job_id IS NOT NULL GROUP BY job_id
        HAVING sum(CASE WHEN code IN ('capture', 'goodwill') THEN amount_nano ELSE 0 END)
            <> sum(CASE WHEN code IN ('capture_node', 'capture_fee') THEN amount_nano ELSE 0 END)
        """,
    "open hold without an open lease": """
        SELECT transfer_id FROM open_holds WHERE transfer_id NOT IN (
            SELECT hold_id FROM leases WHERE state = 'open')""",
    "open lease without an open hold": """
        SELECT lease_id FROM leases WHERE state = 'open'
        AND hold_id NOT IN (SELECT transfer_id FROM open_holds)""",
    "open hold that was resolved": """
        SELECT transfer_id FROM open_holds
        WHERE transfer_id IN (SELECT pending_id FROM transfers WHERE pending_id IS NOT NULL)""",
    "hold neither open nor resolved": """
        SELECT id FROM transfers AS h WHERE kind = 'pending'
        AND id NOT IN (SELECT transfer_id FROM open_holds)
        AND NOT EXISTS (SELECT 1 FROM transfers AS r WHERE r.pending_id = h.id)""",
    "settled lease without a charge": """
        SELECT lease_id FROM leases AS l WHERE state = 'settled' AND NOT EXISTS (
            SELECT 1 FROM transfers WHERE job_id = l.job_id AND code = 'capture')""",
    "released lease whose hold was not voided": """
        SELECT lease_id FROM leases AS l WHERE state = 'released' AND NOT EXISTS (
            SELECT 1 FROM transfers WHERE pending_id = l.hold_id AND kind = 'void')""",
    "expired lease whose hold did not expire": """
        SELECT lease_id FROM leases AS l WHERE state = 'expired' AND NOT EXISTS (
            SELECT 1 FROM transfers WHERE pending_id = l.hold_id AND kind = 'expire')""",
    "paid receipt without a charge": """
        SELECT lease_id FROM receipts AS r WHERE state <> 'pending' AND amount_nano > 0
        AND NOT EXISTS (SELECT 1 FROM transfers WHERE job_id = r.job_id
                        AND code IN ('capture', 'goodwill') AND amount_nano = r.amount_nano)""",
    "pending receipt of a lease that has ended": """
        SELECT r.lease_id, l.state FROM receipts AS r JOIN leases AS l USING (lease_id)
        WHERE r.state = 'pending' AND l.state <> 'open'""",
    "job that is not over, without an open lease": """
        SELECT job_id, state FROM jobs AS j WHERE ended_at_ms IS NULL AND NOT EXISTS (
            SELECT 1 FROM leases WHERE client = j.client AND job_id = j.job_id
            AND state = 'open')""",
    "paid job that is not settled": """
        SELECT job_id, state FROM jobs AS j WHERE state <> 'settled' AND EXISTS (
            SELECT 1 FROM leases WHERE client = j.client AND job_id = j.job_id
            AND state = 'settled')""",
}


@dataclass(frozen=True, slots=True)
class BooksVerdict:
    """`billed_unanswered_nano` was charged to clients for jobs of which no client got the whole
    answer; `billed_nano` is all that clients were charged, `goodwill_nano` what the operator paid
    in their place."""

    double_captures: int
    acknowledged_lost: int
    findings: tuple[str, ...]
    billed_nano: int
    billed_unanswered_nano: int
    goodwill_nano: int


def judge_books(
    books: Path, outboxes: Mapping[str, Path], answered_jobs: Iterable[str]
) -> BooksVerdict:
    """Everything at rest: the coordinator's books, each node's outbox by its peer id, and the jobs
    whose whole answers clients hold."""
    with _reading(books) as connection:
        answered = set(answered_jobs)
        doubled = _wrong_rows(connection, _DOUBLE_CAPTURES)
        lost = [*_lost_answers(connection, answered)]
        for node, outbox in outboxes.items():
            lost += _lost_receipts(connection, node, outbox)
        wrong = [*_damage(connection), *_told_rows(_wrong_rows(connection, _WRONG))]
        charges = connection.execute(
            "SELECT job_id, code, amount_nano FROM transfers WHERE code IN ('capture', 'goodwill')"
        ).fetchall()
    billed = [(job_id, nano) for job_id, code, nano in charges if code == "capture"]
    return BooksVerdict(
        double_captures=sum(map(len, doubled.values())),
        acknowledged_lost=len(lost),
        findings=(*_told_rows(doubled), *lost, *wrong),
        billed_nano=sum(nano for _, nano in billed),
        billed_unanswered_nano=sum(nano for job_id, nano in billed if job_id not in answered),
        goodwill_nano=sum(nano for _, code, nano in charges if code == "goodwill"),
    )


def waiting_receipts(outbox: Path) -> int:
    """How many receipts a node has not handed in yet."""
    with _reading(outbox) as connection:
        (count,) = connection.execute(
            "SELECT count(*) FROM receipts WHERE state = 'waiting'"
        ).fetchone()
        return int(count)


def _wrong_rows(
    connection: sqlite3.Connection, queries: Mapping[str, str]
) -> dict[str, list[tuple[Any, ...]]]:
    return {name: connection.execute(query).fetchall() for name, query in queries.items()}


def _told_rows(found: Mapping[str, list[tuple[Any, ...]]]) -> Iterator[str]:
    for name, rows in found.items():
        yield from (f"{name}: {_told(row)}" for row in rows[:FINDINGS_TOLD_MAX])
        if len(rows) > FINDINGS_TOLD_MAX:
            yield f"{name}: {len(rows) - FINDINGS_TOLD_MAX} more"


def _damage(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("PRAGMA integrity_check").fetchall()
    return [f"file damaged: {_told(row)}" for row in rows if row != ("ok",)]


def _lost_answers(connection: sqlite3.Connection, answered: set[str]) -> Iterator[str]:
    """A client holds the whole answer, so a receipt was signed for it: the books must have it."""
    kept = {job_id for (job_id,) in connection.execute("SELECT job_id FROM receipts")}
    for job_id in sorted(answered - kept):
        yield f"answered job without a receipt: {job_id}"


def _lost_receipts(connection: sqlite3.Connection, node: str, outbox: Path) -> Iterator[str]:
    """What a node's own disk says that the coordinator has acknowledged, and the books lack."""
    with _reading(outbox) as disk:
        pending = disk.execute("SELECT lease_id FROM receipts WHERE state = 'pending'").fetchall()
        (final,) = disk.execute("SELECT coalesce(sum(jobs), 0) FROM earnings").fetchone()
    rows = connection.execute("SELECT lease_id, state FROM receipts WHERE node = ?", (node,))
    kept = dict(rows.fetchall())
    for (lease_id,) in pending:
        if lease_id not in kept:
            yield f"pending receipt lost: {lease_id}"
    kept_final = sum(state != "pending" for state in kept.values())
    # One finding for each, so that they can be counted: a node forgets what was acknowledged.
    yield from (f"receipt of {node} lost" for _ in range(final - kept_final))


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with closing(sqlite3.connect(uri, uri=True, timeout=5)) as connection:
        yield connection


def _told(row: tuple[Any, ...]) -> str:
    return ", ".join(map(str, row))
