"""Takes jobs from the transport, one channel each, and ends them all in order when it drains."""

from collections import deque
from collections.abc import Callable

import trio

from capanode.admission import Admission
from capanode.jobs.closing import CUT_WITHIN_S
from capanode.jobs.ending import DRAINED, JobFailure
from capanode.jobs.served_job import JobService, ServedJob
from capanode.outbox import Outbox
from protocol.clock import Clock
from protocol.keys import SigningKey
from protocol.net.channels import Channel
from protocol.net.link import serve_channels
from protocol.net.transport import Stream

ROLE = "node"
ERRORS_REMEMBERED = 20


class JobServer:
    """Serves the streams of JOB_PROTOCOL. `on_change` hears when the load changed."""

    def __init__(
        self,
        key: SigningKey,
        admission: Admission,
        outbox: Outbox,
        *,
        clock: Clock,
        on_change: Callable[[], None],
    ) -> None:
        self.admission = admission
        self.failures: deque[JobFailure] = deque(maxlen=ERRORS_REMEMBERED)
        self._service = JobService(key, admission, outbox, clock, on_change, self.failures.append)
        # A dictionary, not a set: a drain cuts jobs in the order in which they came.
        self._live: dict[ServedJob, None] = {}
        self._idle = trio.Event()

    @property
    def live_jobs(self) -> int:
        return len(self._live)

    async def serve(self, stream: Stream) -> None:
        """The transport's handler."""
        await serve_channels(stream, self.serve_channel, role=ROLE)

    async def serve_channel(self, channel: Channel) -> None:
        job = ServedJob(self._service, channel)
        self._live[job] = None
        try:
            await job.run()
        finally:
            self._leave(job)
        await job.wait_acceptance()

    async def drain(self, *, within_s: float) -> None:
        """Take no more jobs; let those here finish, then cut what is left, each with a receipt."""
        self.admission.is_draining = True
        self._service.on_change()
        with trio.move_on_after(within_s):
            await self._wait_idle()
        for job in tuple(self._live):
            job.end(DRAINED)
        with trio.move_on_after(CUT_WITHIN_S):
            await self._wait_idle()

    def _leave(self, job: ServedJob) -> None:
        self._live.pop(job, None)
        if not self._live:
            self._idle.set()

    async def _wait_idle(self) -> None:
        while self._live:
            self._idle = trio.Event()
            await self._idle.wait()
