"""Jobs as stored: one row per client and job id, from its first lease on.

A job may have several attempts, whose ends arrive in any order: a receipt that was late, a hold
that ran out long after another attempt had answered. So a row's state is merged, not overwritten:

- settled is final: one of the attempts was paid, or complete at no cost;
- else the newest attempt speaks for the job; what becomes of an earlier one changes nothing.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, bindparam, literal_column, select, update

from coordinator.db.bulk import BulkInsert, BulkUpdate, Record
from coordinator.db.digests import row_digest
from coordinator.db.leases import StoredLease
from coordinator.db.schema import jobs
from protocol.envelope import Signed
from protocol.ids import Digest, JobId, PeerId
from protocol.job_state import JobState
from protocol.messages import JobRequest, Lease, Objective, Task


@dataclass(frozen=True, slots=True)
class StoredJob:
    """`request` is the envelope as its client signed it; `attempt` is the last that was leased;
    `error_code` is a wire code, or None."""

    client: PeerId
    job_id: JobId
    request: bytes
    task: Task
    model_digest: Digest
    objective: Objective
    created_at_ms: int
    attempt: int
    state: JobState
    ended_at_ms: int | None
    error_code: str | None


_FIELDS = tuple(StoredJob.__slots__)
_COLUMNS = [jobs.c[field] for field in _FIELDS]
_DIGESTED = _FIELDS[: _FIELDS.index("attempt")]

# Each attempt says it again: whether an earlier one got as far as a row is not worth knowing, and a
# row that breaks a constraint would take a whole group commit apart.
_LEASED = BulkInsert(
    jobs,
    (*_DIGESTED, "digest", *_FIELDS[len(_DIGESTED) :]),
    on_conflict=(
        "ON CONFLICT (client, job_id) DO UPDATE SET attempt = excluded.attempt, "
        "state = excluded.state, ended_at_ms = excluded.ended_at_ms, "
        "error_code = excluded.error_code "
        "WHERE jobs.attempt <= excluded.attempt AND jobs.state <> 'settled'"
    ),
)

# Above every attempt: a payment speaks for the job whichever attempt it is for.
_ANY_ATTEMPT = 2**31 - 1

_END = BulkUpdate(
    update(jobs)
    .values(
        state=bindparam("new_state"),
        ended_at_ms=bindparam("new_ended_at_ms"),
        error_code=bindparam("new_error_code"),
    )
    .where(jobs.c.client == bindparam("of_client"))
    .where(jobs.c.job_id == bindparam("of_job"))
    .where(jobs.c.attempt <= bindparam("up_to_attempt"))
    .where(jobs.c.state != literal_column("'settled'")),
    ("new_state", "new_ended_at_ms", "new_error_code", "of_client", "of_job", "up_to_attempt"),
    must_hit=False,
)


def record_job(
    request: Signed[JobRequest], *, model_digest: Digest, attempt: int, now_ms: int
) -> Record:
    """A job that is leased, for the first time or again."""
    asked = request.message
    fixed = (
        asked.client,
        asked.job_id,
        request.raw,
        asked.task.value,
        model_digest,
        asked.objective.value,
        now_ms,
    )
    digest = row_digest("jobs", *fixed)
    return Record(_LEASED, (*fixed, digest, attempt, JobState.LEASED.value, None, None))


def record_job_end(
    lease: Lease | StoredLease, state: JobState, *, ended_at_ms: int, error_code: str | None = None
) -> Record:
    """What became of a job by the end of one lease; see above for when that changes its row."""
    attempt = _ANY_ATTEMPT if state is JobState.SETTLED else lease.attempt
    values = (state.value, ended_at_ms, error_code, lease.client, lease.job_id, attempt)
    return Record(_END, values)


def find_jobs(conn: Connection, job_id: JobId) -> list[StoredJob]:
    """The jobs of all clients with this id: clients choose their ids themselves."""
    query = select(*_COLUMNS).where(jobs.c.job_id == job_id).order_by(jobs.c.client)
    return [_job(row) for row in conn.execute(query)]


def list_jobs(
    conn: Connection,
    *,
    client: PeerId | None = None,
    state: JobState | None = None,
    before: JobId | None = None,
    limit: int = 50,
) -> list[StoredJob]:
    """One page, newest first, of jobs older than `before`."""
    query = select(*_COLUMNS).order_by(jobs.c.job_id.desc(), jobs.c.client).limit(limit)
    if client is not None:
        query = query.where(jobs.c.client == client)
    if state is not None:
        query = query.where(jobs.c.state == state.value)
    if before is not None:
        query = query.where(jobs.c.job_id < before)
    return [_job(row) for row in conn.execute(query)]


def damaged_jobs(conn: Connection) -> Iterator[JobId]:
    """Jobs whose request, client or other fixed values are not those that were written."""
    columns = [jobs.c[field] for field in _DIGESTED]
    for digest, *values in conn.execute(select(jobs.c.digest, *columns)):
        if digest != row_digest("jobs", *values):
            yield values[1]


def _job(row: Sequence[Any]) -> StoredJob:
    job = StoredJob(*row)
    return replace(
        job,
        state=JobState(job.state),
        task=Task(job.task),
        objective=Objective(job.objective),
    )
