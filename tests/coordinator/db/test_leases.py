"""Leases as stored."""

from collections.abc import Iterator

import pytest
from sqlalchemy import update

from coordinator.db.bulk import run_records
from coordinator.db.engine import Connection
from coordinator.db.leases import (
    StoredLease,
    damaged_leases,
    find_lease,
    list_leases_of,
    list_open_leases,
    record_delivery,
    record_lease,
    record_lease_end,
)
from coordinator.db.receipts import record_receipt
from coordinator.db.schema import leases
from coordinator.errors import ConstraintError
from protocol.countersigning import Delivery
from protocol.endings import LeaseState, ReceiptState
from protocol.envelope import Signed, seal
from protocol.errors import Code
from protocol.ids import LeaseId
from protocol.pricing import Units
from tests.coordinator.evidence import CHAIN, LEASE, TERMS, leased
from tests.coordinator.ledger_makers import memory_books
from tests.protocol.makers import CLIENT, NOW_MS


@pytest.fixture
def conn() -> Iterator[Connection]:
    with leased() as conn:
        yield conn


def test_a_lease_is_found_as_it_was_signed(conn: Connection) -> None:
    expected = StoredLease(
        lease_id=LEASE.lease_id,
        job_id=LEASE.job_id,
        attempt=0,
        client=LEASE.client,
        node=LEASE.node,
        coordinator=LEASE.coordinator,
        envelope=CHAIN.lease.raw,
        ceiling_nano=LEASE.ceiling_nano,
        created_at_ms=NOW_MS,
        terms=TERMS,
        state=LeaseState.OPEN,
        ended_at_ms=None,
        delivery=None,
    )
    assert find_lease(conn, LEASE.lease_id) == expected
    assert list_leases_of(conn, LEASE.client, LEASE.job_id) == [expected]
    assert list_leases_of(conn, LEASE.node, LEASE.job_id) == [], "it is another client's job"
    assert find_lease(conn, LeaseId("0" * 26)) is None


def test_open_leases_are_what_a_restart_takes_up(conn: Connection) -> None:
    (row,) = list_open_leases(conn)
    assert (row.envelope, row.terms, row.has_receipt) == (CHAIN.lease.raw, TERMS, False)
    receipt = record_receipt(
        CHAIN.receipt, None, state=ReceiptState.PENDING, amount_nano=1, now_ms=NOW_MS
    )
    run_records(conn, [receipt])
    (row,) = list_open_leases(conn)
    assert row.has_receipt
    run_records(conn, [record_lease_end(LEASE.lease_id, LeaseState.SETTLED, now_ms=NOW_MS)])
    assert list_open_leases(conn) == []


def test_a_lease_ends_once(conn: Connection) -> None:
    run_records(conn, [record_lease_end(LEASE.lease_id, LeaseState.RELEASED, now_ms=NOW_MS + 1)])
    with pytest.raises(ConstraintError):
        run_records(conn, [record_lease_end(LEASE.lease_id, LeaseState.EXPIRED, now_ms=NOW_MS)])
    lease = find_lease(conn, LEASE.lease_id)
    assert lease is not None
    assert (lease.state, lease.ended_at_ms) == (LeaseState.RELEASED, NOW_MS + 1)


def deliver(output_tokens: int) -> Signed[Delivery]:
    return seal(
        CLIENT,
        Delivery(
            lease_id=LEASE.lease_id,
            lease_digest=CHAIN.lease.digest,
            client=LEASE.client,
            units=Units(5, output_tokens),
            output_digest=CHAIN.receipt.message.output_digest,
            code=Code.NODE_LOST,
            issued_at_ms=NOW_MS,
        ),
    )


def test_what_a_client_got_of_a_cut_stream_survives_a_restart(conn: Connection) -> None:
    run_records(conn, [record_delivery(deliver(3)), record_delivery(deliver(2))])
    (row,) = list_open_leases(conn)
    stored = find_lease(conn, LEASE.lease_id)
    assert stored is not None
    assert row.delivery == stored.delivery == deliver(3).raw, "the first word stands"


def test_a_damaged_word_of_a_client_is_found(conn: Connection) -> None:
    run_records(conn, [record_delivery(deliver(3))])
    assert list(damaged_leases(conn)) == []
    conn.execute(update(leases).values(delivery=deliver(3).raw[:-1] + b"\0"))
    assert list(damaged_leases(conn)) == [LEASE.lease_id]


def test_a_lease_without_its_hold_is_refused() -> None:
    """The row rides with the hold's posting; alone it would promise money that nobody holds."""
    row = record_lease(CHAIN.lease, TERMS)
    with (
        memory_books() as database,
        pytest.raises(ConstraintError, match="FOREIGN KEY"),
        database.transaction() as conn,
    ):
        run_records(conn, [row])
