"""Leases as stored: the signed terms, and what became of their holds."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from coordinator.db.bulk import BulkInsert, BulkUpdate, Record
from coordinator.db.schema import jobs, leases, receipts
from protocol.endings import LeaseState
from protocol.envelope import Signed
from protocol.ids import JobId, LeaseId, PeerId, TransferId
from protocol.messages import Lease


@dataclass(frozen=True, slots=True)
class StoredLease:
    """`envelope` is the lease as this coordinator signed it; `expires_at_ms` is its hold's."""

    lease_id: LeaseId
    job_id: JobId
    attempt: int
    client: PeerId
    node: PeerId
    envelope: bytes
    hold_id: TransferId
    ceiling_nano: int
    created_at_ms: int
    expires_at_ms: int
    state: LeaseState
    ended_at_ms: int | None


@dataclass(frozen=True, slots=True)
class OpenLeaseRow:
    """What a restarted coordinator takes up again; `has_receipt` if one waits for its client."""

    envelope: bytes
    api_key_id: str | None
    has_receipt: bool


_FIELDS = tuple(StoredLease.__slots__)
_COLUMNS = [leases.c[field] for field in _FIELDS]

_INSERT = BulkInsert(leases, _FIELDS)
_END = BulkUpdate(
    update(leases)
    .values(state=bindparam("new_state"), ended_at_ms=bindparam("new_ended_at_ms"))
    .where(leases.c.lease_id == bindparam("lease"))
    .where(leases.c.state == bindparam("old_state")),
    ("new_state", "new_ended_at_ms", "lease", "old_state"),
)


def record_lease(lease: Signed[Lease], *, hold_id: TransferId, expires_at_ms: int) -> Record:
    granted = lease.message
    return Record(
        _INSERT,
        (
            granted.lease_id,
            granted.job_id,
            granted.attempt,
            granted.client,
            granted.node,
            lease.raw,
            hold_id,
            granted.ceiling_nano,
            granted.issued_at_ms,
            expires_at_ms,
            LeaseState.OPEN.value,
            None,
        ),
    )


def record_lease_end(lease_id: LeaseId, state: LeaseState, *, now_ms: int) -> Record:
    """Of a lease that is open; ending one twice is refused, and the posting with it."""
    return Record(_END, (state.value, now_ms, lease_id, LeaseState.OPEN.value))


def find_lease(conn: Connection, lease_id: LeaseId) -> StoredLease | None:
    row = conn.execute(select(*_COLUMNS).where(leases.c.lease_id == lease_id)).first()
    return None if row is None else _lease(row)


def list_leases_of(conn: Connection, job_id: JobId) -> list[StoredLease]:
    """Every attempt at a job, in order."""
    query = select(*_COLUMNS).where(leases.c.job_id == job_id).order_by(leases.c.attempt)
    return [_lease(row) for row in conn.execute(query)]


def list_open_leases(conn: Connection) -> list[OpenLeaseRow]:
    """All leases whose holds are not resolved, in order of jobs and attempts."""
    query = (
        select(leases.c.envelope, jobs.c.api_key_id, receipts.c.lease_id.is_not(None))
        .join(jobs, jobs.c.job_id == leases.c.job_id)
        .outerjoin(receipts, receipts.c.lease_id == leases.c.lease_id)
        .where(leases.c.state == LeaseState.OPEN.value)
        .order_by(leases.c.job_id, leases.c.attempt)
    )
    return [OpenLeaseRow(*row) for row in conn.execute(query)]


def _lease(row: Sequence[Any]) -> StoredLease:
    stored = StoredLease(*row)
    return replace(stored, state=LeaseState(stored.state))
