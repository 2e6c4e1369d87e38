"""Leases of a gateway's batches that an earlier process of it had under way when it was killed: the
coordinators know them, and this signs that nothing came of them."""

from collections.abc import Container, Sequence

import structlog
import trio

from coordinator.buyer.remote import RemoteLeaser
from coordinator.db.filing_rows import StoredBatch
from protocol.clock import Clock
from protocol.countersigning import nothing_of
from protocol.envelope import open_envelope, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import JobId
from protocol.keys import SigningKey
from protocol.messages import JobRequest, Lease
from protocol.net.errors import NetError
from protocol.services import EvidenceAsk, JobAsk, JobsAsk

log = structlog.get_logger(__name__)

# A coordinator that is away for longer pays what nodes hand in, and its market is not waited for.
AWAY_WITHIN_S = 60.0
_AGAIN_AFTER_S = 2.0
_TIME_CHARS = 10
_AFTER_ALL = "Z" * 16
# As many jobs as a batch has lines, some of them tried again.
_PAGES_MAX = 2_000


class EdgeLeftovers:
    """A `Leftovers`."""

    def __init__(self, coordinators: Sequence[RemoteLeaser], key: SigningKey, clock: Clock) -> None:
        self._coordinators = coordinators
        self._key = key
        self._clock = clock

    async def disown(self, batches: Sequence[StoredBatch], answered: Container[str]) -> None:
        for remote in self._coordinators:
            gives_up_at = trio.current_time() + AWAY_WITHIN_S
            for batch in batches:
                while not await self._try_disown(remote, batch, answered):
                    if trio.current_time() >= gives_up_at:
                        log.warning("leftovers_not_disowned", coordinator=remote.coordinator)
                        break
                    await trio.sleep(_AGAIN_AFTER_S)

    async def _try_disown(
        self, remote: RemoteLeaser, batch: StoredBatch, answered: Container[str]
    ) -> bool:
        """False if the coordinator is away."""
        try:
            for job_id in await self._open_jobs(remote, batch):
                if job_id not in answered:
                    await self._disown_job(remote, job_id)
        except NetError:
            return False
        except RemoteProtocolError as error:
            if error.code in (Code.RATE_LIMITED, Code.COORDINATOR_LOST):
                return False
            # An account that was never opened there has no leases.
            log.info("leftovers_unknown", coordinator=remote.coordinator, code=error.code)
        return True

    async def _open_jobs(self, remote: RemoteLeaser, batch: StoredBatch) -> list[JobId]:
        """Those of the batch that have not ended. Ids of its jobs begin as its own."""
        prefix, found = batch.id[:_TIME_CHARS], []
        before = prefix + _AFTER_ALL
        for _ in range(_PAGES_MAX):
            page = await remote.jobs(JobsAsk(before=before))
            own = [job for job in page.jobs if job.job_id.startswith(prefix)]
            found += [job.job_id for job in own if not job.ended_at_ms]
            before = page.next_before
            if not before or len(own) < len(page.jobs):
                break
        return found

    async def _disown_job(self, remote: RemoteLeaser, job_id: JobId) -> None:
        reply = await remote.job(JobAsk(job_id))
        for attempt in reply.attempts:
            if attempt.ended_at_ms:
                continue
            try:
                evidence = await remote.evidence(EvidenceAsk(job_id, attempt.lease_id))
                asked = open_envelope(evidence.request, JobRequest, signer=self._key.peer_id)
                if evidence.delivery or not asked.message.is_batch:
                    continue
                lease = open_envelope(evidence.lease, Lease, signer=remote.coordinator)
                nothing = nothing_of(lease, now_ms=self._clock.now_ms())
                await remote.declare(seal(self._key, nothing))
            except RemoteProtocolError as error:
                # It was paid meanwhile, or an older coordinator does not show it.
                log.info("leftover_not_disowned", job_id=job_id, code=error.code)
