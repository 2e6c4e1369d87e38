"""The audit's look at leases and receipts: what they say must be what the books say."""

from collections.abc import Iterator

import pytest

from coordinator.audit import Check, Finding, audit
from coordinator.db.bulk import Record, run_records
from coordinator.db.engine import Connection
from coordinator.db.leases import record_lease_end
from coordinator.db.receipts import record_receipt
from coordinator.db.writer import post_one
from coordinator.ledger.machine import Chain
from coordinator.ledger.postings import capture, capture_late, expire, hold, release
from coordinator.ledger.transfers import Transfer
from protocol.endings import LeaseState, ReceiptState
from tests.coordinator.evidence import CHAIN, EXPIRES_AT_MS, FUNDS, LEASE, leased
from tests.protocol.makers import NOW_MS

AMOUNT_NANO = CHAIN.receipt.message.amount_nano
CAPTURE = capture(FUNDS, AMOUNT_NANO, LEASE.node, fee_bps=500)
RELEASE = release(FUNDS)
EXPIRE = expire(hold(FUNDS, timeout_at_ms=EXPIRES_AT_MS).transfers[0])
LATE = capture_late(FUNDS, AMOUNT_NANO, LEASE.node, fee_bps=500)


@pytest.fixture
def conn() -> Iterator[Connection]:
    with leased() as conn:
        yield conn


def end(state: LeaseState) -> Record:
    return record_lease_end(LEASE.lease_id, state, now_ms=NOW_MS)


def receipt(state: ReceiptState, amount_nano: int = AMOUNT_NANO) -> Record:
    return record_receipt(
        CHAIN.receipt, CHAIN.acceptance, state=state, amount_nano=amount_nano, now_ms=NOW_MS
    )


def resolve(conn: Connection, chain: Chain) -> None:
    post_one(conn, chain, now_ms=EXPIRES_AT_MS if chain in (EXPIRE, LATE) else NOW_MS)


def test_an_open_lease_with_an_open_hold_is_green(conn: Connection) -> None:
    assert audit(conn).is_green


@pytest.mark.parametrize(
    ("chain", "state"),
    [
        (CAPTURE, LeaseState.SETTLED),
        (RELEASE, LeaseState.RELEASED),
        (EXPIRE, LeaseState.EXPIRED),
        (LATE, LeaseState.SETTLED),
    ],
)
def test_a_lease_that_ended_as_its_hold_did_is_green(
    conn: Connection, chain: Chain, state: LeaseState
) -> None:
    resolve(conn, chain)
    run_records(conn, [end(state)])
    assert audit(conn).is_green


@pytest.mark.parametrize("state", [LeaseState.SETTLED, LeaseState.RELEASED, LeaseState.EXPIRED])
def test_a_lease_that_ended_while_its_hold_is_open_is_found(
    conn: Connection, state: LeaseState
) -> None:
    run_records(conn, [end(state)])
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
        run_records(conn, [end(state)])
    (finding,) = audit(conn).findings
    assert finding.check is Check.LEASE_CONTRADICTS_HOLD


@pytest.mark.parametrize("state", [ReceiptState.SETTLED, ReceiptState.DISPUTED])
@pytest.mark.parametrize("chain", [CAPTURE, LATE])
def test_a_paid_receipt_says_what_was_captured(
    conn: Connection, chain: Chain, state: ReceiptState
) -> None:
    resolve(conn, chain)
    run_records(conn, [end(LeaseState.SETTLED), receipt(state)])
    assert audit(conn).is_green


@pytest.mark.parametrize("chain", [CAPTURE, LATE])
def test_a_paid_receipt_that_says_something_else_is_found(conn: Connection, chain: Chain) -> None:
    resolve(conn, chain)
    run_records(conn, [end(LeaseState.SETTLED), receipt(ReceiptState.SETTLED, AMOUNT_NANO + 1)])
    (finding,) = audit(conn).findings
    assert finding.check is Check.RECEIPT_CONTRADICTS_CAPTURE
    assert finding.message == f"the receipt says {AMOUNT_NANO + 1}, {AMOUNT_NANO} was captured"


def test_a_receipt_of_nothing_goes_with_a_release(conn: Connection) -> None:
    resolve(conn, RELEASE)
    run_records(conn, [end(LeaseState.RELEASED), receipt(ReceiptState.SETTLED, 0)])
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
