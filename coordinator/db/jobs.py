"""Jobs as stored: one row per signed request, from its first lease on."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, bindparam, select, update

from coordinator.db.bulk import BulkInsert, BulkUpdate, Record
from coordinator.db.schema import jobs
from protocol.envelope import Signed
from protocol.ids import Digest, JobId, PeerId
from protocol.job_state import JobState
from protocol.messages import JobRequest, Objective, Task


@dataclass(frozen=True, slots=True)
class StoredJob:
    """`request` is the envelope as its client signed it; `error_code` is a wire code, or None."""

    job_id: JobId
    client: PeerId
    request: bytes
    state: JobState
    task: Task
    model_digest: Digest
    objective: Objective
    api_key_id: str | None
    created_at_ms: int
    ended_at_ms: int | None
    error_code: str | None


_FIELDS = tuple(StoredJob.__slots__)
_COLUMNS = [jobs.c[field] for field in _FIELDS]

# Each attempt says it again: whether an earlier one got as far as a row is not worth knowing, and a
# row that breaks a constraint would take a whole group commit apart.
_LEASED = BulkInsert(
    jobs,
    _FIELDS,
    on_conflict=(
        "ON CONFLICT (job_id) DO UPDATE SET state = excluded.state, "
        "ended_at_ms = excluded.ended_at_ms, error_code = excluded.error_code "
        "WHERE jobs.request = excluded.request"
    ),
)
_ADVANCE = BulkUpdate(
    update(jobs)
    .values(
        state=bindparam("new_state"),
        ended_at_ms=bindparam("new_ended_at_ms"),
        error_code=bindparam("new_error_code"),
    )
    .where(jobs.c.job_id == bindparam("job")),
    ("new_state", "new_ended_at_ms", "new_error_code", "job"),
)


def record_job(
    request: Signed[JobRequest], *, model_digest: Digest, api_key_id: str | None, now_ms: int
) -> Record:
    """A job that is leased, for the first time or again."""
    asked = request.message
    return Record(
        _LEASED,
        (
            asked.job_id,
            asked.client,
            request.raw,
            JobState.LEASED.value,
            asked.task.value,
            model_digest,
            asked.objective.value,
            api_key_id,
            now_ms,
            None,
            None,
        ),
    )


def record_job_state(
    job_id: JobId, state: JobState, *, ended_at_ms: int | None = None, error_code: str | None = None
) -> Record:
    return Record(_ADVANCE, (state.value, ended_at_ms, error_code, job_id))


def find_job(conn: Connection, job_id: JobId) -> StoredJob | None:
    row = conn.execute(select(*_COLUMNS).where(jobs.c.job_id == job_id)).first()
    return None if row is None else _job(row)


def list_jobs(
    conn: Connection,
    *,
    client: PeerId | None = None,
    state: JobState | None = None,
    before: JobId | None = None,
    limit: int = 50,
) -> list[StoredJob]:
    """One page, newest first, of jobs older than `before`."""
    query = select(*_COLUMNS).order_by(jobs.c.job_id.desc()).limit(limit)
    if client is not None:
        query = query.where(jobs.c.client == client)
    if state is not None:
        query = query.where(jobs.c.state == state.value)
    if before is not None:
        query = query.where(jobs.c.job_id < before)
    return [_job(row) for row in conn.execute(query)]


def _job(row: Sequence[Any]) -> StoredJob:
    job = StoredJob(*row)
    return replace(
        job,
        state=JobState(job.state),
        task=Task(job.task),
        objective=Objective(job.objective),
    )
