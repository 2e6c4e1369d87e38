"""How often each job was leased, until its request is too old for another lease."""

from dataclasses import dataclass

from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import Digest, JobId
from protocol.limits import RECEIPT_GRACE_MS
from protocol.messages import JobRequest, Lease

# A client tries five nodes; a client that asks for twice as many leases only wants holds.
LEASES_PER_JOB_MAX = 10


@dataclass(slots=True)
class _LeasedJob:
    """The one request that this job is, how often it was leased, and when it has to end."""

    request: Digest
    attempts: int
    deadline_at_ms: int


class LeasedJobs:
    """The jobs that this process has leased, and those that it was told of by the database."""

    def __init__(self) -> None:
        self._jobs: dict[JobId, _LeasedJob] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def next_attempt(self, request: Signed[JobRequest]) -> int:
        """The number of this job's next lease. Raises RemoteProtocolError: ALREADY_EXISTS if
        another request has the job's id, REPLAYED if it was leased too often."""
        known = self._jobs.get(request.message.job_id)
        if known is None:
            return 0
        if known.request != request.digest:
            raise RemoteProtocolError(
                "another request has this job's id: choose a new one", code=Code.ALREADY_EXISTS
            )
        if known.attempts >= LEASES_PER_JOB_MAX:
            raise RemoteProtocolError("this job was leased too often", code=Code.REPLAYED)
        return known.attempts

    def deadline_at_ms(self, asked: JobRequest, *, now_ms: int) -> int:
        """The request's deadline by our own clock. The client's may be half a minute off, and a
        job of twenty seconds would then be over before it began: so how long it may take counts
        from when we first leased it."""
        known = self._jobs.get(asked.job_id)
        if known is not None:
            return known.deadline_at_ms
        return now_ms + asked.deadline_at_ms - asked.issued_at_ms

    def note(self, lease: Lease) -> None:
        """A lease was granted, by this process or by an earlier one."""
        self._jobs[lease.job_id] = _LeasedJob(
            lease.request_digest, lease.attempt + 1, lease.deadline_at_ms
        )

    def forget(self, now_ms: int) -> None:
        """Drop the jobs whose requests are refused as expired anyway."""
        latest_ms = now_ms - RECEIPT_GRACE_MS
        over = [key for key, job in self._jobs.items() if job.deadline_at_ms <= latest_ms]
        for job_id in over:
            del self._jobs[job_id]
