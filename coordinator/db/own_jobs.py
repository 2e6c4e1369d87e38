"""An account's own jobs, as its owner may see them: lists, one job with its attempts, and usage.

Every query names the account, and walks at most what its answer holds or the account's own jobs of
the days asked for: ids of jobs begin with their time, so that the primary key leads there.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from sqlalchemy import Connection, func, select

from coordinator.db.jobs import StoredJob, find_jobs, list_jobs
from coordinator.db.leases import StoredLease, list_leases_of
from coordinator.db.receipts import StoredReceipt, list_receipts_of
from coordinator.db.schema import jobs, receipts
from protocol.countersigning import Delivery
from protocol.envelope import open_envelope
from protocol.errors import Code
from protocol.ids import Digest, JobId, PeerId, new_ulid
from protocol.messages import JobRequest, Lease, Receipt
from protocol.pricing import Units
from protocol.services import (
    DAY_MS,
    Counted,
    EvidenceReply,
    JobAttempt,
    JobReply,
    JobsReply,
    JobSummary,
    UsageReply,
    UsageRow,
)

_ROWS_MAX = 2_000
_LOWEST = bytes(10)
_COUNTS = tuple(field.name for field in fields(Counted))


def list_own_jobs(conn: Connection, client: PeerId, *, before: str, limit: int) -> JobsReply:
    """One page, newest first, without leases ahead that no job came for: it may be shorter."""
    older = JobId(before) if before else None
    found = list_jobs(conn, client=client, before=older, limit=limit + 1)
    page = found[:limit]
    billed = [list_receipts_of(conn, client, job.job_id) for job in page]
    summaries = [
        _summary(job, its)
        for job, its in zip(page, billed, strict=True)
        if not _is_unused(job, its)
    ]
    return JobsReply(tuple(summaries), page[-1].job_id if len(found) > limit else "")


def find_own_job(conn: Connection, client: PeerId, job_id: JobId) -> JobReply | None:
    """A job with every attempt at it."""
    job = next((job for job in find_jobs(conn, job_id) if job.client == client), None)
    if job is None:
        return None
    billed = list_receipts_of(conn, client, job_id)
    by_lease = {receipt.lease_id: receipt for receipt in billed}
    attempts = [
        _attempt(lease, by_lease.get(lease.lease_id))
        for lease in list_leases_of(conn, client, job_id)
    ]
    return JobReply(_summary(job, billed), tuple(attempts))


def find_own_evidence(
    conn: Connection, client: PeerId, job_id: JobId, lease_id: str
) -> EvidenceReply | None:
    """What was signed of a lease so far, or of the last one with a receipt."""
    job = next((job for job in find_jobs(conn, job_id) if job.client == client), None)
    billed = list_receipts_of(conn, client, job_id)
    wanted = [receipt for receipt in billed if lease_id in ("", receipt.lease_id)]
    receipt = wanted[-1] if wanted else None
    wanted_id = receipt.lease_id if receipt is not None else lease_id
    leases = list_leases_of(conn, client, job_id)
    lease = next((lease for lease in leases if lease.lease_id == wanted_id), None)
    if job is None or lease is None:
        return None
    return EvidenceReply(
        job.request,
        lease.envelope,
        receipt.receipt if receipt is not None else b"",
        (receipt.acceptance if receipt is not None else None) or b"",
        lease.delivery or b"",
    )


def sum_usage(conn: Connection, client: PeerId, *, last_day: int, days: int) -> UsageReply:
    """By day and model, newest first. The days are those of the jobs' first leases."""
    first_ms, end_ms = (last_day - days + 1) * DAY_MS, (last_day + 1) * DAY_MS
    day = (jobs.c.created_at_ms // DAY_MS).label("day")
    # A clock that was off by an hour when the id was made hides no job.
    since = new_ulid(max(0, first_ms - DAY_MS), _LOWEST)
    counts = [func.sum(receipts.c[name]) for name in _COUNTS]
    query = (
        select(
            day,
            jobs.c.model_digest,
            func.max(jobs.c.job_id),
            func.count(jobs.c.job_id.distinct()),
            func.sum(receipts.c.amount_nano),
            *counts,
        )
        .join(
            receipts,
            (receipts.c.client == jobs.c.client) & (receipts.c.job_id == jobs.c.job_id),
        )
        .where(jobs.c.client == client, jobs.c.job_id >= since)
        .where(jobs.c.created_at_ms >= first_ms, jobs.c.created_at_ms < end_ms)
        .group_by(day, jobs.c.model_digest)
        .order_by(day.desc(), jobs.c.model_digest)
        .limit(_ROWS_MAX + 1)
    )
    rows = conn.execute(query).all()
    found = [_usage(conn, client, row) for row in rows[:_ROWS_MAX]]
    return UsageReply(tuple(found), is_cut=len(rows) > _ROWS_MAX)


def _usage(conn: Connection, client: PeerId, row: Sequence[Any]) -> UsageRow:
    day, model_digest, last_job, count, amount_nano, *units = row
    query = select(jobs.c.request).where(jobs.c.client == client, jobs.c.job_id == last_job)
    request = conn.scalar(query)
    assert request is not None, "the row is of this very job"
    named = open_envelope(request, JobRequest).message.model
    return UsageRow(int(day), Digest(model_digest), named, count, amount_nano, Counted(*units))


def _is_unused(job: StoredJob, billed: Sequence[StoredReceipt]) -> bool:
    """A lease ahead that was given back, or that lapsed."""
    if job.attempt or job.error_code not in (None, Code.CANCELLED):
        return False
    is_ahead = open_envelope(job.request, JobRequest).message.is_ahead
    return is_ahead and all(receipt.units == Units() for receipt in billed)


def _summary(job: StoredJob, billed: Sequence[StoredReceipt]) -> JobSummary:
    return JobSummary(
        job_id=job.job_id,
        model=open_envelope(job.request, JobRequest).message.model,
        model_digest=job.model_digest,
        task=job.task,
        state=job.state.value,
        created_at_ms=job.created_at_ms,
        ended_at_ms=job.ended_at_ms or 0,
        error_code=job.error_code or "",
        amount_nano=sum(receipt.amount_nano for receipt in billed),
        units=Counted(*(sum(getattr(r.units, name) for r in billed) for name in _COUNTS)),
    )


def _attempt(lease: StoredLease, stored: StoredReceipt | None) -> JobAttempt:
    granted = open_envelope(lease.envelope, Lease).message
    signed = open_envelope(stored.receipt, Receipt) if stored is not None else None
    billed = signed.message if signed is not None else None
    code = billed.code if billed is not None else ""
    if billed is None and lease.delivery is not None:
        code = str(open_envelope(lease.delivery, Delivery).message.code or "")
    return JobAttempt(
        lease_id=lease.lease_id,
        attempt=lease.attempt,
        node=lease.node,
        state=lease.state.value,
        price=granted.price,
        ceiling_nano=lease.ceiling_nano,
        created_at_ms=lease.created_at_ms,
        ended_at_ms=lease.ended_at_ms or 0,
        finish=billed.finish.value if billed is not None else "",
        code=code,
        amount_nano=stored.amount_nano if stored is not None else 0,
        units=stored.units if stored is not None else Units(),
        queued_ms=billed.queued_ms if billed is not None else 0,
        first_output_ms=billed.first_output_ms if billed is not None else 0,
        total_ms=billed.total_ms if billed is not None else 0,
        receipt_state=stored.state.value if stored is not None else "",
        receipt_digest=signed.digest if signed is not None else "",
    )
