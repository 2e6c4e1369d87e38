"""Receipts as stored."""

from collections.abc import Iterator
from dataclasses import asdict, replace

import pytest
from sqlalchemy import text

from coordinator.db.bulk import Record, run_records
from coordinator.db.engine import Connection
from coordinator.db.migrations import HEAD, schema_revision, upgrade_schema
from coordinator.db.own_jobs import list_own_jobs, sum_usage
from coordinator.db.receipts import (
    StoredReceipt,
    damaged_receipts,
    find_receipt,
    list_receipts_of,
    record_receipt,
)
from protocol.endings import ReceiptState
from protocol.ids import LeaseId
from protocol.services import DAY_MS, Counted
from tests.coordinator.evidence import CHAIN, LEASE, leased

RECEIPT = CHAIN.receipt.message


@pytest.fixture
def conn() -> Iterator[Connection]:
    with leased() as conn:
        yield conn


def row(
    state: ReceiptState, *, is_accepted: bool, amount_nano: int = RECEIPT.amount_nano, now_ms: int
) -> Record:
    acceptance = CHAIN.acceptance if is_accepted else None
    return record_receipt(
        CHAIN.receipt, acceptance, state=state, amount_nano=amount_nano, now_ms=now_ms
    )


def test_a_receipt_waits_for_the_clients_word_and_is_then_settled(conn: Connection) -> None:
    run_records(conn, [row(ReceiptState.PENDING, is_accepted=False, now_ms=10)])
    waiting = StoredReceipt(
        lease_id=LEASE.lease_id,
        client=LEASE.client,
        job_id=LEASE.job_id,
        node=LEASE.node,
        receipt=CHAIN.receipt.raw,
        acceptance=None,
        amount_nano=RECEIPT.amount_nano,
        units=RECEIPT.units,
        state=ReceiptState.PENDING,
        received_at_ms=10,
        settled_at_ms=None,
    )
    assert find_receipt(conn, LEASE.lease_id) == waiting
    run_records(conn, [row(ReceiptState.SETTLED, is_accepted=True, now_ms=20)])
    settled = find_receipt(conn, LEASE.lease_id)
    assert settled is not None
    assert (settled.state, settled.acceptance) == (ReceiptState.SETTLED, CHAIN.acceptance.raw)
    assert (settled.received_at_ms, settled.settled_at_ms) == (10, 20)


def test_what_is_settled_does_not_change_any_more(conn: Connection) -> None:
    run_records(conn, [row(ReceiptState.SETTLED, is_accepted=True, now_ms=10)])
    before = find_receipt(conn, LEASE.lease_id)
    run_records(conn, [row(ReceiptState.DISPUTED, is_accepted=False, amount_nano=1, now_ms=20)])
    assert find_receipt(conn, LEASE.lease_id) == before


def test_receipts_are_found_by_their_job(conn: Connection) -> None:
    names = (LEASE.client, LEASE.job_id)
    assert list_receipts_of(conn, *names) == []
    run_records(conn, [row(ReceiptState.PENDING, is_accepted=False, now_ms=10)])
    assert [found.lease_id for found in list_receipts_of(conn, *names)] == [LEASE.lease_id]
    assert list_receipts_of(conn, LEASE.node, LEASE.job_id) == []
    assert find_receipt(conn, LeaseId("0" * 26)) is None


def test_cached_tokens_are_kept_and_covered_by_the_digest(conn: Connection) -> None:
    units = replace(RECEIPT.units, cached_tokens=RECEIPT.units.input_tokens)
    receipt = replace(CHAIN.receipt, message=replace(RECEIPT, units=units))
    run_records(
        conn, [record_receipt(receipt, None, state=ReceiptState.PENDING, amount_nano=1, now_ms=1)]
    )
    stored = find_receipt(conn, LEASE.lease_id)
    assert stored is not None
    assert stored.units == units
    (job,) = list_own_jobs(conn, LEASE.client, before="", limit=9).jobs
    assert job.units == Counted(**asdict(units))
    today = job.created_at_ms // DAY_MS
    (used,) = sum_usage(conn, LEASE.client, last_day=today, days=1).rows
    assert used.units == job.units
    assert list(damaged_receipts(conn)) == []
    conn.execute(text("UPDATE receipts SET cached_tokens = cached_tokens - 1"))
    assert list(damaged_receipts(conn)) == [LEASE.lease_id]


def test_a_receipt_of_the_time_before_cached_tokens_is_read_and_sound(conn: Connection) -> None:
    run_records(conn, [row(ReceiptState.PENDING, is_accepted=False, now_ms=10)])
    before = find_receipt(conn, LEASE.lease_id)
    for table in ("receipts", "batches"):
        conn.execute(text(f"ALTER TABLE {table} DROP COLUMN cached_tokens"))
    conn.execute(text("UPDATE alembic_version SET version_num = '0004'"))
    upgrade_schema(conn)
    assert schema_revision(conn) == HEAD
    assert find_receipt(conn, LEASE.lease_id) == before
    assert list(damaged_receipts(conn)) == []
