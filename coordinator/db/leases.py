"""Leases as stored: the signed terms, how far the job came, and what became of the hold."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from coordinator.db.bulk import BulkInsert, BulkUpdate, Record
from coordinator.db.digests import row_digest
from coordinator.db.schema import leases, receipts
from coordinator.ledger.transfers import Transfer
from protocol.endings import LeaseState
from protocol.envelope import Signed
from protocol.ids import JobId, LeaseId, PeerId, TransferId
from protocol.messages import Lease
from protocol.pricing import Units

_NOTHING = Units()


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
class LeaseProgress:
    """How far a lease's job came, as far as the coordinator knows.

    `signed` are the units that the client last signed for, in `evidence` as it came; `delivered` is
    what our own gateway counted of a stream that was cut, `cut_by_us` whether the gateway cut it.
    """

    signed: Units = _NOTHING
    evidence: bytes | None = None
    delivered: Units | None = None
    cut_by_us: bool = False


@dataclass(frozen=True, slots=True)
class StoredLease:
    """`envelope` is the lease as its coordinator signed it."""

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
    progress: LeaseProgress


@dataclass(frozen=True, slots=True)
class OpenLeaseRow:
    """What a restarted coordinator takes up again; `has_receipt` if one waits for its client."""

    envelope: bytes
    terms: LeaseTerms
    progress: LeaseProgress
    has_receipt: bool


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
_PROGRESS = (
    "signed_input_tokens",
    "signed_output_tokens",
    "progress",
    "delivered_input_tokens",
    "delivered_output_tokens",
    "delivered_images",
    "cut_by_us",
)
_NAMES = ("lease_id", "job_id", "attempt", "client", "node", "coordinator", "envelope")
_HEAD = (*_NAMES, "ceiling_nano", "created_at_ms", "state", "ended_at_ms")


def _columns(*names: str) -> list[Any]:
    return [leases.c[name] for name in names]


_INSERT = BulkInsert(
    leases,
    (
        *_FIXED,
        "digest",
        "state",
        "signed_input_tokens",
        "signed_output_tokens",
        "cut_by_us",
    ),
)
_END = BulkUpdate(
    update(leases)
    .values(state=bindparam("new_state"), ended_at_ms=bindparam("new_ended_at_ms"))
    .where(leases.c.lease_id == bindparam("lease"))
    .where(leases.c.state == bindparam("old_state")),
    ("new_state", "new_ended_at_ms", "lease", "old_state"),
)
# Signed words are cumulative, and arrive in any order: an older one changes nothing.
_SIGNED = BulkUpdate(
    update(leases)
    .values(
        progress=bindparam("evidence"),
        signed_input_tokens=bindparam("input_tokens"),
        signed_output_tokens=bindparam("output_tokens"),
    )
    .where(leases.c.lease_id == bindparam("lease"))
    .where(leases.c.signed_input_tokens <= bindparam("at_least_input"))
    .where(leases.c.signed_output_tokens <= bindparam("at_least_output")),
    ("evidence", "input_tokens", "output_tokens", "lease", "at_least_input", "at_least_output"),
    must_hit=False,
)
_CUT = BulkUpdate(
    update(leases)
    .values(
        delivered_input_tokens=bindparam("input_tokens"),
        delivered_output_tokens=bindparam("output_tokens"),
        delivered_images=bindparam("images"),
        cut_by_us=bindparam("by_us"),
    )
    .where(leases.c.lease_id == bindparam("lease")),
    ("input_tokens", "output_tokens", "images", "by_us", "lease"),
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
    return Record(_INSERT, (*fixed, digest, LeaseState.OPEN.value, 0, 0, 0))


def record_lease_end(lease_id: LeaseId, state: LeaseState, *, now_ms: int) -> Record:
    """Of a lease that is open; ending one twice is refused, and the posting with it."""
    return Record(_END, (state.value, now_ms, lease_id, LeaseState.OPEN.value))


def record_signed_progress(lease_id: LeaseId, signed: Units, evidence: bytes) -> Record:
    """The units that a lease's client has signed for so far, with its words as they came."""
    counts = (signed.input_tokens, signed.output_tokens)
    return Record(_SIGNED, (evidence, *counts, lease_id, *counts))


def record_cut(lease_id: LeaseId, delivered: Units, *, by_us: bool) -> Record:
    """What our own gateway had counted when a lease's stream was cut."""
    counts = (delivered.input_tokens, delivered.output_tokens, delivered.images)
    return Record(_CUT, (*counts, int(by_us), lease_id))


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
            *_columns(*_TERMS),
            *_columns(*_PROGRESS),
        )
        .outerjoin(receipts, receipts.c.lease_id == leases.c.lease_id)
        .where(leases.c.state == LeaseState.OPEN.value)
        .order_by(leases.c.client, leases.c.job_id, leases.c.attempt)
    )
    return [
        OpenLeaseRow(envelope, _terms(rest), _progress(rest[len(_TERMS) :]), has_receipt)
        for envelope, has_receipt, *rest in conn.execute(query)
    ]


def damaged_leases(conn: Connection) -> Iterator[LeaseId]:
    """Leases whose fixed values are not those that were written."""
    for digest, *values in conn.execute(select(leases.c.digest, *_columns(*_FIXED))):
        if digest != row_digest("leases", *values):
            yield values[0]


_SELECT = select(*_columns(*_HEAD), *_columns(*_TERMS), *_columns(*_PROGRESS))


def _lease(row: Sequence[Any]) -> StoredLease:
    head, rest = row[: len(_HEAD)], row[len(_HEAD) :]
    lease_id, job_id, attempt, client, node, coordinator, envelope = head[: len(_NAMES)]
    ceiling_nano, created_at_ms, state, ended_at_ms = head[len(_NAMES) :]
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
        _terms(rest),
        LeaseState(state),
        ended_at_ms,
        _progress(rest[len(_TERMS) :]),
    )


def _terms(row: Sequence[Any]) -> LeaseTerms:
    return LeaseTerms(*row[: len(_TERMS)])


def _progress(row: Sequence[Any]) -> LeaseProgress:
    signed_input, signed_output, evidence, *delivered, cut_by_us = row
    counted = None if delivered[0] is None else Units(*delivered)
    return LeaseProgress(Units(signed_input, signed_output), evidence, counted, cut_by_us == 1)
