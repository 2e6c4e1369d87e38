"""How often each client's job was leased, until its request is too old for another lease.

Clients choose the ids of their jobs, so that two may choose the same: a job is known by both.
"""

from dataclasses import dataclass

from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import Digest, JobId, PeerId
from protocol.limits import RECEIPT_GRACE_MS
from protocol.messages import JobRequest, Lease

# A client tries five nodes; a client that asks for twice as many leases only wants holds.
LEASES_PER_JOB_MAX = 10
# The highest number that a lease can carry, over all parts of a job.
ATTEMPT_MAX = 64

JobKey = tuple[PeerId, JobId]


@dataclass(slots=True)
class _LeasedJob:
    """The request that was leased last, at first as which attempt; how often the job was leased in
    all, when it has to end, and how many of its leases are open. `part` is None if an earlier
    process leased it."""

    request: Digest
    part: int | None
    first_attempt: int = 0
    attempts: int = 0
    deadline_at_ms: int = 0
    open: int = 0


class LeasedJobs:
    """The jobs that this process has leased, and those that the database told it of."""

    def __init__(self) -> None:
        self._jobs: dict[JobKey, _LeasedJob] = {}

    def __len__(self) -> int:
        return len(self._jobs)

    def next_attempt(self, request: Signed[JobRequest]) -> int:
        """The number of this job's next lease. Raises RemoteProtocolError: ALREADY_EXISTS if
        another request has the job's id, REPLAYED if it was leased too often."""
        asked = request.message
        known = self._jobs.get((asked.client, asked.job_id))
        if known is None:
            return 0
        if known.request == request.digest:
            if known.attempts - known.first_attempt >= LEASES_PER_JOB_MAX:
                raise RemoteProtocolError("this job was leased too often", code=Code.REPLAYED)
        elif asked.part <= (known.part or 0):
            raise RemoteProtocolError(
                "another request has this job's id: choose a new one", code=Code.ALREADY_EXISTS
            )
        if known.attempts > ATTEMPT_MAX:
            raise RemoteProtocolError("this job was leased too often", code=Code.REPLAYED)
        return known.attempts

    def deadline_at_ms(self, request: Signed[JobRequest], *, now_ms: int) -> int:
        """The request's deadline by our own clock. The client's may be half a minute off, and a
        job of twenty seconds would then be over before it began: so how long it may take counts
        from when we first leased it."""
        asked = request.message
        known = self._jobs.get((asked.client, asked.job_id))
        if known is not None and known.request == request.digest:
            return known.deadline_at_ms
        return now_ms + asked.deadline_at_ms - asked.issued_at_ms

    def begin(self, lease: Lease, *, part: int | None) -> None:
        """A lease is open from now on; `part` is the request's, None if that is not known."""
        self.note(lease, part=part)
        self._jobs[lease.client, lease.job_id].open += 1

    def note(self, lease: Lease, *, part: int | None = None) -> None:
        """A lease was granted, by this process or by an earlier one."""
        key = (lease.client, lease.job_id)
        known = self._jobs.get(key)
        if known is None:
            known = self._jobs[key] = _LeasedJob(lease.request_digest, part)
        if known.request != lease.request_digest:
            known.request, known.first_attempt = lease.request_digest, lease.attempt
            # The part is the request's: an earlier process may have leased a lower one.
            known.part = part
        known.part = part if part is not None else known.part
        known.attempts = max(known.attempts, lease.attempt + 1)
        known.deadline_at_ms = lease.deadline_at_ms

    def end(self, lease: Lease) -> None:
        """A lease that began is open no more."""
        self._jobs[lease.client, lease.job_id].open -= 1

    def forget(self, now_ms: int) -> None:
        """Drop the jobs whose requests are refused as expired anyway, and that have no open lease:
        a job that is forgotten too early would be given the ids of its open leases again."""
        latest_ms = now_ms - RECEIPT_GRACE_MS
        over = [
            key
            for key, job in self._jobs.items()
            if not job.open and job.deadline_at_ms <= latest_ms
        ]
        for key in over:
            del self._jobs[key]
