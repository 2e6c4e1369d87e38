"""Receipts as stored."""

from collections.abc import Iterator

import pytest

from coordinator.db.bulk import Record, run_records
from coordinator.db.engine import Connection
from coordinator.db.receipts import (
    StoredReceipt,
    find_receipt,
    list_receipts_of,
    record_receipt,
)
from protocol.endings import ReceiptState
from protocol.ids import LeaseId
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
