"""The audit's look at leases and receipts: what they say must be what the books say."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
from sqlalchemy import text

from coordinator.audit.books import audit
from coordinator.audit.findings import Check, Finding
from coordinator.db.accounts import open_account
from coordinator.db.bulk import Record, run_records
from coordinator.db.engine import Connection
from coordinator.db.heads import check_books, store_head
from coordinator.db.jobs import record_job_end
from coordinator.db.leases import record_lease_end
from coordinator.db.receipts import record_receipt
from coordinator.db.writer import post_one
from coordinator.errors import DamagedBooksError
from coordinator.ledger.accounts import Account, AccountKind, account_of
from coordinator.ledger.machine import Chain
from coordinator.ledger.postings import (
    capture,
    capture_from_operator,
    capture_late,
    credit,
    expire,
    hold,
    lease_id_of,
    release,
)
from coordinator.ledger.transfers import Transfer, TransferCode
from protocol.endings import LeaseState, ReceiptState
from protocol.ids import JobId, TransferId, derive_ulid
from protocol.job_state import JobState
from tests.coordinator.evidence import CHAIN, EXPIRES_AT_MS, FUNDS, LEASE, leased
from tests.protocol.makers import COORDINATOR, NODE, NOW_MS, STRANGER

AMOUNT_NANO = CHAIN.receipt.message.amount_nano
CAPTURE = capture(FUNDS, AMOUNT_NANO, LEASE.node, fee_bps=500)
RELEASE = release(FUNDS)
EXPIRE = expire(hold(FUNDS, timeout_at_ms=EXPIRES_AT_MS).transfers[0])
LATE = capture_late(FUNDS, AMOUNT_NANO, LEASE.node, fee_bps=500)

OTHER_CREDIT = TransferId(derive_ulid(LEASE.job_id, "credit of another client"))

GIFT = capture_from_operator(FUNDS, AMOUNT_NANO, LEASE.node, fee_bps=500, is_late=False)
LATE_GIFT = capture_from_operator(FUNDS, AMOUNT_NANO, LEASE.node, fee_bps=500, is_late=True)

JOB_STATES = {
    LeaseState.SETTLED: JobState.SETTLED,
    LeaseState.RELEASED: JobState.REFUSED,
    LeaseState.EXPIRED: JobState.EXPIRED,
}


@pytest.fixture
def conn() -> Iterator[Connection]:
    with leased() as conn:
        yield conn


def end(state: LeaseState) -> list[Record]:
    """What is written with the end of a lease's hold: the lease's state, and the job's."""
    return [
        record_lease_end(LEASE.lease_id, state, now_ms=NOW_MS),
        record_job_end(LEASE, JOB_STATES[state], ended_at_ms=NOW_MS),
    ]


def receipt(state: ReceiptState, amount_nano: int = AMOUNT_NANO) -> Record:
    return record_receipt(
        CHAIN.receipt, CHAIN.acceptance, state=state, amount_nano=amount_nano, now_ms=NOW_MS
    )


def resolve(conn: Connection, chain: Chain) -> None:
    post_one(conn, chain, now_ms=EXPIRES_AT_MS if chain in (EXPIRE, LATE, LATE_GIFT) else NOW_MS)


def test_an_open_lease_with_an_open_hold_is_green(conn: Connection) -> None:
    assert audit(conn).is_green


@pytest.mark.parametrize(
    ("chain", "state"),
    [
        (CAPTURE, LeaseState.SETTLED),
        (RELEASE, LeaseState.RELEASED),
        (EXPIRE, LeaseState.EXPIRED),
        (LATE, LeaseState.SETTLED),
        (GIFT, LeaseState.SETTLED),
        (GIFT, LeaseState.RELEASED),
        (LATE_GIFT, LeaseState.SETTLED),
    ],
)
def test_a_lease_that_ended_as_its_hold_did_is_green(
    conn: Connection, chain: Chain, state: LeaseState
) -> None:
    resolve(conn, chain)
    run_records(conn, end(state))
    assert audit(conn).is_green


def test_a_payment_of_another_client_for_the_same_job_id_is_not_taken_for_a_late_one(
    conn: Connection,
) -> None:
    """It came right after the expiry, and the audit was red for as long as the books are kept."""
    other = STRANGER.peer_id
    open_account(conn, Account(account_of(other), AccountKind.CLIENT))
    post_one(conn, credit(OTHER_CREDIT, account_of(other), 10_000), now_ms=NOW_MS)
    lease_id = lease_id_of(other, LEASE.job_id, 0)
    funds = replace(FUNDS, lease_id=lease_id, client=other)
    post_one(conn, hold(funds, timeout_at_ms=EXPIRES_AT_MS + 1), now_ms=NOW_MS)
    resolve(conn, EXPIRE)
    run_records(conn, end(LeaseState.EXPIRED))
    paid = capture(funds, AMOUNT_NANO, LEASE.node, fee_bps=500)
    post_one(conn, paid, now_ms=EXPIRES_AT_MS)
    assert audit(conn).is_green


@pytest.mark.parametrize("state", [LeaseState.SETTLED, LeaseState.RELEASED, LeaseState.EXPIRED])
def test_a_lease_that_ended_while_its_hold_is_open_is_found(
    conn: Connection, state: LeaseState
) -> None:
    run_records(conn, end(state))
    (finding,) = audit(conn).findings
    assert finding == Finding(
        Check.LEASE_CONTRADICTS_HOLD,
        LEASE.lease_id,
        f"the lease is {state.value}, its hold {FUNDS.hold_id} is still open",
    )


@pytest.mark.parametrize(
    ("chain", "state"),
    [
        (CAPTURE, LeaseState.RELEASED),
        (CAPTURE, LeaseState.EXPIRED),
        (RELEASE, LeaseState.SETTLED),
        (EXPIRE, LeaseState.RELEASED),
        (EXPIRE, LeaseState.SETTLED),
        (EXPIRE, None),
        (LATE, LeaseState.EXPIRED),
        (LATE, None),
        (CAPTURE, None),
    ],
)
def test_a_lease_that_ended_otherwise_than_its_hold_is_found(
    conn: Connection, chain: Chain, state: LeaseState | None
) -> None:
    resolve(conn, chain)
    if state is not None:
        run_records(conn, end(state))
    (finding,) = audit(conn).findings
    assert finding.check is Check.LEASE_CONTRADICTS_HOLD


@pytest.mark.parametrize("state", [ReceiptState.SETTLED, ReceiptState.DISPUTED])
@pytest.mark.parametrize("chain", [CAPTURE, LATE, GIFT, LATE_GIFT])
def test_a_paid_receipt_says_what_was_captured(
    conn: Connection, chain: Chain, state: ReceiptState
) -> None:
    resolve(conn, chain)
    run_records(conn, [*end(LeaseState.SETTLED), receipt(state)])
    assert audit(conn).is_green


@pytest.mark.parametrize("chain", [CAPTURE, LATE])
def test_a_paid_receipt_that_says_something_else_is_found(conn: Connection, chain: Chain) -> None:
    resolve(conn, chain)
    run_records(conn, [*end(LeaseState.SETTLED), receipt(ReceiptState.SETTLED, AMOUNT_NANO + 1)])
    (finding,) = audit(conn).findings
    assert finding.check is Check.RECEIPT_CONTRADICTS_CAPTURE
    assert finding.message == f"the receipt says {AMOUNT_NANO + 1}, {AMOUNT_NANO} was captured"


def test_a_receipt_of_nothing_goes_with_a_release(conn: Connection) -> None:
    resolve(conn, RELEASE)
    run_records(conn, [*end(LeaseState.RELEASED), receipt(ReceiptState.SETTLED, 0)])
    assert audit(conn).is_green


def test_a_receipt_that_waits_for_its_client_contradicts_nothing(conn: Connection) -> None:
    run_records(conn, [receipt(ReceiptState.PENDING)])
    assert audit(conn).is_green


CHARGE = LATE.transfers[1]


@pytest.mark.parametrize(
    "transfers",
    [
        (CHARGE,),
        (*EXPIRE.transfers, CHARGE._replace(amount_nano=LEASE.ceiling_nano + 1)),
        (*EXPIRE.transfers, CHARGE._replace(job_id=None)),
    ],
    ids=["no hold", "more than the hold", "another job's hold"],
)
def test_a_client_who_is_charged_without_a_hold_is_found(
    conn: Connection, transfers: tuple[Transfer, ...]
) -> None:
    post_one(conn, Chain(transfers), now_ms=EXPIRES_AT_MS)
    assert Check.CAPTURE_WITHOUT_HOLD in {finding.check for finding in audit(conn).findings}


def test_a_job_that_says_something_else_than_its_leases_is_found(conn: Connection) -> None:
    run_records(conn, [record_job_end(LEASE, JobState.EXPIRED, ended_at_ms=NOW_MS)])
    (finding,) = audit(conn).findings
    assert finding.check is Check.JOB_CONTRADICTS_LEASES


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE leases SET ceiling_nano = ceiling_nano + 1",
        "UPDATE leases SET window_tokens = 64",
        "UPDATE jobs SET model_digest = 'another'",
        "UPDATE accounts SET label = 'another' WHERE kind = 'client'",
        "UPDATE accounts SET may_overdraw = 1 WHERE kind = 'client'",
    ],
)
def test_a_value_that_was_changed_behind_the_programs_back_is_found(
    conn: Connection, change: str
) -> None:
    conn.execute(text(change))
    assert Check.ROW_DAMAGED in {finding.check for finding in audit(conn).findings}


def test_a_leg_of_another_job_is_found(conn: Connection) -> None:
    foreign = [
        t._replace(job_id=JobId("0" * 26)) if t.code is TransferCode.CAPTURE_NODE else t
        for t in CAPTURE.transfers
    ]
    post_one(conn, CAPTURE._replace(transfers=tuple(foreign)), now_ms=NOW_MS)
    run_records(conn, end(LeaseState.SETTLED))
    assert Check.CAPTURE_LEGS_DIFFER in {finding.check for finding in audit(conn).findings}


def test_a_head_vouches_for_the_transfers_before_it(conn: Connection) -> None:
    assert store_head(conn, COORDINATOR, now_ms=NOW_MS)
    assert not store_head(conn, COORDINATOR, now_ms=NOW_MS), "there is nothing new to sign"
    assert audit(conn, signer=COORDINATOR.peer_id).is_green
    check_books(conn, signer=COORDINATOR.peer_id)
    (finding,) = audit(conn, signer=NODE.peer_id).findings
    assert finding.check is Check.HEAD_CONTRADICTS_CHAIN
    with pytest.raises(DamagedBooksError, match="is not signed by us"):
        check_books(conn, signer=NODE.peer_id)


@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM transfers WHERE sequence = (SELECT max(sequence) FROM transfers)",
        "UPDATE transfers SET amount_nano = amount_nano + 1 WHERE sequence > 3",
        "UPDATE ledger_heads SET chain_hash = zeroblob(32)",
        "UPDATE ledger_heads SET sequence = sequence + 1",
        "UPDATE ledger_heads SET signature = zeroblob(64)",
    ],
)
def test_books_that_contradict_their_head_do_not_open(conn: Connection, damage: str) -> None:
    resolve(conn, RELEASE)
    run_records(conn, end(LeaseState.RELEASED))
    store_head(conn, COORDINATOR, now_ms=NOW_MS)
    check_books(conn)
    for verb in ("update", "delete"):
        conn.execute(text(f"DROP TRIGGER transfers_refuse_{verb}"))
    conn.execute(text(damage))
    with pytest.raises(DamagedBooksError, match="ledger audit"):
        check_books(conn)
    assert not audit(conn).is_green
