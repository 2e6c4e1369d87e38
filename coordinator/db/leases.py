"""Leases as stored: the signed terms, the client's word on a job without a receipt, and what became
of the hold."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Connection,
    Subquery,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    select,
    update,
)

from coordinator.db.bulk import BulkInsert, BulkUpdate, Record
from coordinator.db.digests import row_digest
from coordinator.db.schema import jobs, leases, receipts, transfers
from coordinator.ledger.transfers import Transfer, TransferKind
from protocol.countersigning import Delivery
from protocol.endings import LeaseState, ReceiptState
from protocol.envelope import Signed, open_envelope, read_unverified
from protocol.errors import RemoteProtocolError
from protocol.ids import JobId, LeaseId, PeerId, TransferId
from protocol.messages import JobRequest, Lease

# A hold, its end, and what the node and the operator get of it.
_TRANSFERS_PER_LEASE = 4


@dataclass(frozen=True, slots=True)
class LeaseTerms:
    """What is fixed when a lease is granted, beside its signed words. `expires_at_ms` is
    the hold's, `api_key_id` the key whose budget pays, `node_incarnation_ms` the leased offer's."""

    hold_id: TransferId
    expires_at_ms: int
    api_key_id: str | None = None
    node_incarnation_ms: int = 0
    window_tokens: int = 0


@dataclass(frozen=True, slots=True)
class StoredLease:
    """`envelope` is the lease as its coordinator signed it; `delivery` is what its client signed if
    the job ended without a receipt."""

    lease_id: LeaseId
    job_id: JobId
    attempt: int
    client: PeerId
    node: PeerId
    coordinator: PeerId
    envelope: bytes
    ceiling_nano: int
    created_at_ms: int
    terms: LeaseTerms
    state: LeaseState
    ended_at_ms: int | None
    delivery: bytes | None


@dataclass(frozen=True, slots=True)
class EndedLease:
    """How a lease ended, between whom. `receipt_state` is None if it ended without a receipt;
    `is_signed` if its client signed for what it got; `is_own` if our own gateway bought it;
    `is_lapsed_ahead` if its client leased it before it had a job, and nothing came of it."""

    node: PeerId
    client: PeerId
    state: LeaseState
    receipt_state: ReceiptState | None
    paid_nano: int
    is_signed: bool
    is_own: bool
    is_lapsed_ahead: bool


@dataclass(frozen=True, slots=True)
class OpenLeaseRow:
    """What a restarted coordinator takes up again; `has_receipt` if one waits for its client,
    `is_ahead` if its client leased it before it had a job."""

    envelope: bytes
    terms: LeaseTerms
    delivery: bytes | None
    has_receipt: bool
    is_ahead: bool


_FIXED = (
    "lease_id",
    "job_id",
    "attempt",
    "client",
    "node",
    "coordinator",
    "node_incarnation_ms",
    "window_tokens",
    "api_key_id",
    "envelope",
    "hold_id",
    "ceiling_nano",
    "created_at_ms",
    "expires_at_ms",
)
_TERMS = ("hold_id", "expires_at_ms", "api_key_id", "node_incarnation_ms", "window_tokens")
_NAMES = ("lease_id", "job_id", "attempt", "client", "node", "coordinator", "envelope")
_HEAD = (*_NAMES, "ceiling_nano", "created_at_ms", "state", "ended_at_ms", "delivery")


def _columns(*names: str) -> list[Any]:
    return [leases.c[name] for name in names]


_INSERT = BulkInsert(
    leases,
    (
        *_FIXED,
        "digest",
        "state",
    ),
)
_END = BulkUpdate(
    update(leases)
    .values(state=bindparam("new_state"), ended_at_ms=bindparam("new_ended_at_ms"))
    .where(leases.c.lease_id == bindparam("lease"))
    .where(leases.c.state == bindparam("old_state")),
    ("new_state", "new_ended_at_ms", "lease", "old_state"),
)
# A job's row keeps the request of its first lease. No later one is ahead of its job.
_FIRST_REQUEST = jobs.c.request
_IS_OF_FIRST_REQUEST = and_(
    jobs.c.client == leases.c.client,
    jobs.c.job_id == leases.c.job_id,
    leases.c.attempt == literal_column("0"),
)
# The first word stands. A lease that has ended meanwhile needs none.
_DELIVER = BulkUpdate(
    update(leases)
    .values(delivery=bindparam("evidence"))
    .where(leases.c.lease_id == bindparam("lease"))
    .where(leases.c.state == literal_column("'open'"))
    .where(leases.c.delivery.is_(None)),
    ("evidence", "lease"),
    must_hit=False,
)


def record_lease(lease: Signed[Lease], terms: LeaseTerms) -> Record:
    granted = lease.message
    fixed = (
        granted.lease_id,
        granted.job_id,
        granted.attempt,
        granted.client,
        granted.node,
        granted.coordinator,
        terms.node_incarnation_ms,
        terms.window_tokens,
        terms.api_key_id,
        lease.raw,
        terms.hold_id,
        granted.ceiling_nano,
        granted.issued_at_ms,
        terms.expires_at_ms,
    )
    digest = row_digest("leases", *fixed)
    return Record(_INSERT, (*fixed, digest, LeaseState.OPEN.value))


def record_lease_end(lease_id: LeaseId, state: LeaseState, *, now_ms: int) -> Record:
    """Of a lease that is open; ending one twice is refused, and the posting with it."""
    return Record(_END, (state.value, now_ms, lease_id, LeaseState.OPEN.value))


def record_delivery(delivery: Signed[Delivery]) -> Record:
    """What a lease's client got of a job that ended without a receipt, as it signed that."""
    return Record(_DELIVER, (delivery.raw, delivery.message.lease_id))


def find_lease(conn: Connection, lease_id: LeaseId) -> StoredLease | None:
    row = conn.execute(_SELECT.where(leases.c.lease_id == lease_id)).first()
    return None if row is None else _lease(row)


def find_lease_of_hold(conn: Connection, hold: Transfer) -> StoredLease | None:
    """The lease whose money a hold keeps. There is no index on holds: its job leads to it."""
    is_its = (leases.c.client == hold.debit, leases.c.job_id == hold.job_id)
    row = conn.execute(_SELECT.where(*is_its, leases.c.hold_id == hold.id)).first()
    return None if row is None else _lease(row)


def list_leases_of(conn: Connection, client: PeerId, job_id: JobId) -> list[StoredLease]:
    """Every attempt at a client's job, in order."""
    is_its = (leases.c.client == client, leases.c.job_id == job_id)
    return [_lease(row) for row in conn.execute(_SELECT.where(*is_its).order_by(leases.c.attempt))]


def list_open_leases(conn: Connection) -> list[OpenLeaseRow]:
    """All leases whose holds are not resolved, in order of jobs and attempts."""
    query = (
        select(
            leases.c.envelope,
            receipts.c.lease_id.is_not(None),
            leases.c.delivery,
            _FIRST_REQUEST,
            *_columns(*_TERMS),
        )
        .outerjoin(receipts, receipts.c.lease_id == leases.c.lease_id)
        .outerjoin(jobs, _IS_OF_FIRST_REQUEST)
        .where(leases.c.state == LeaseState.OPEN.value)
        .order_by(leases.c.client, leases.c.job_id, leases.c.attempt)
    )
    return [
        OpenLeaseRow(envelope, LeaseTerms(*terms), delivery, has_receipt, _is_ahead(request))
        for envelope, has_receipt, delivery, request, *terms in conn.execute(query)
    ]


def recent_holds(*, since_ms: int, limit: int) -> Subquery:
    """The holds of the last `limit` leases or fewer that were granted since, by our own clock: what
    clients choose, such as the times in the ids of jobs and leases, cannot hide one. Walks the
    end of the books only, so that a long history costs nothing."""
    last = select(func.coalesce(func.max(transfers.c.sequence), 0)).scalar_subquery()
    return (
        select(transfers.c.id, transfers.c.debit, transfers.c.job_id, transfers.c.sequence)
        .where(transfers.c.sequence > last - _TRANSFERS_PER_LEASE * limit)
        .where(transfers.c.kind == TransferKind.PENDING.value)
        .where(transfers.c.created_at_ns >= since_ms * 1_000_000)
        .order_by(transfers.c.sequence.desc())
        .limit(limit)
        .subquery()
    )


def is_of_hold(holds: Subquery) -> ColumnElement[bool]:
    """Joins leases to `recent_holds`; there is no index on holds, but on the jobs of clients."""
    return and_(
        leases.c.client == holds.c.debit,
        leases.c.job_id == holds.c.job_id,
        leases.c.hold_id == holds.c.id,
    )


def list_ended_leases(conn: Connection, *, since_ms: int, limit: int) -> list[EndedLease]:
    """Those of the last `limit` leases since then that have ended, in order of their grants."""
    holds = recent_holds(since_ms=since_ms, limit=limit)
    query = (
        select(
            leases.c.node,
            leases.c.client,
            leases.c.state,
            receipts.c.state,
            receipts.c.amount_nano,
            receipts.c.acceptance.is_not(None) | leases.c.delivery.is_not(None),
            leases.c.api_key_id.is_not(None),
            case((leases.c.state == LeaseState.RELEASED.value, _FIRST_REQUEST)),
        )
        .join(holds, is_of_hold(holds))
        .outerjoin(receipts, receipts.c.lease_id == leases.c.lease_id)
        .outerjoin(jobs, _IS_OF_FIRST_REQUEST & receipts.c.lease_id.is_(None))
        .where(leases.c.state != LeaseState.OPEN.value)
        .order_by(holds.c.sequence)
    )
    rows = conn.execute(query)
    return [
        EndedLease(
            node,
            client,
            LeaseState(state),
            None if receipt_state is None else ReceiptState(receipt_state),
            paid_nano or 0,
            bool(is_signed),
            bool(is_own),
            _is_ahead(request),
        )
        for node, client, state, receipt_state, paid_nano, is_signed, is_own, request in rows
    ]


def _is_ahead(request: bytes | None) -> bool:
    return request is not None and read_unverified(request, JobRequest).is_ahead


def damaged_leases(conn: Connection) -> Iterator[LeaseId]:
    """Leases whose fixed values, or whose client's word, are not those that were written."""
    query = select(leases.c.delivery, leases.c.digest, *_columns(*_FIXED))
    for delivery, digest, *values in conn.execute(query):
        if digest != row_digest("leases", *values) or not _is_genuine(delivery):
            yield values[0]


def _is_genuine(delivery: bytes | None) -> bool:
    try:
        return delivery is None or bool(open_envelope(delivery, Delivery))
    except RemoteProtocolError:
        return False


_SELECT = select(*_columns(*_HEAD), *_columns(*_TERMS))


def _lease(row: Sequence[Any]) -> StoredLease:
    head, terms = row[: len(_HEAD)], row[len(_HEAD) :]
    lease_id, job_id, attempt, client, node, coordinator, envelope = head[: len(_NAMES)]
    ceiling_nano, created_at_ms, state, ended_at_ms, delivery = head[len(_NAMES) :]
    return StoredLease(
        lease_id,
        job_id,
        attempt,
        client,
        node,
        coordinator,
        envelope,
        ceiling_nano,
        created_at_ms,
        LeaseTerms(*terms),
        LeaseState(state),
        ended_at_ms,
        delivery,
    )
