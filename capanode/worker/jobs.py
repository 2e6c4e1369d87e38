"""The jobs that a worker is running, as the node sees them: who wants each one's events, and
whether the events make sense. Also `open_job`, the convenient way to run one.
"""

from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import trio

from capanode.device_problems import DeviceFailure
from capanode.engines.base import Completed, EngineEvent, EngineInfo, Failed, Produced, Started
from capanode.worker.allowance import DEFAULT_TERMS, Allowance, RunTerms
from capanode.worker.frames import WorkerProtocolError
from protocol.errors import Code, RemoteProtocolError
from protocol.pricing import Units

EventSink = Callable[[EngineEvent], None]

# Far above any engine's slots and any queue before them; stops a caller that has gone wild.
JOBS_MAX = 1_024

# A reader this far behind, with a bounded output, has stopped reading.
QUEUED_EVENTS_MAX = 4_096

# Started, and Completed or Failed.
_EVENTS_AROUND_OUTPUT = 2


class WorkerState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    # It ended and will be started again after a pause.
    RESTARTING = "restarting"
    # It ended too often; someone has to look at it.
    UNAVAILABLE = "unavailable"
    # Its GPU cannot be had; it is tried again now and then until it can.
    DEVICE_LOST = "device_lost"
    STOPPED = "stopped"
    # Of a model that is loaded on demand (`capanode.swapping`): not in memory, being loaded, and
    # tried again later because a load failed.
    COLD = "cold"
    LOADING = "loading"
    LOAD_FAILED = "load_failed"


@dataclass(frozen=True, slots=True)
class WorkerExit:
    """Why a worker ended, in the words and the code for the jobs that it had; `device` if it was
    its GPU."""

    code: Code
    message: str
    device: DeviceFailure | None = None


class JobWorker(Protocol):
    """What the node's job runner needs of a worker; the simulator has one without a process."""

    @property
    def state(self) -> WorkerState: ...

    @property
    def info(self) -> EngineInfo | None:
        """What the engine can do; None until it was ready once."""
        ...

    @property
    def last_ending(self) -> WorkerExit | None:
        """Why its process last ended, for the operator; None if it never did."""
        ...

    def submit(
        self, job_id: str, payload: bytes, sink: EventSink, *, terms: RunTerms = DEFAULT_TERMS
    ) -> None:
        """Run a job. `sink` is called with each of its events as they arrive, the last of which is
        Completed or Failed; it must be quick, must not raise, and is not called from inside
        `submit` or `cancel`. Raises RemoteProtocolError (MODEL_UNAVAILABLE, BUSY,
        ALREADY_EXISTS)."""
        ...

    def cancel(self, job_id: str) -> None:
        """Free the job's slot at once; its sink is not called again. Unknown ids are ignored."""
        ...


@dataclass(slots=True)
class _Job:
    sink: EventSink
    allowance: Allowance
    is_started: bool = False
    # Waits to be run again: the process does not have it.
    is_parked: bool = False


@dataclass(slots=True)
class _Leaving:
    """Cancelled runs of one id: confirmations that are due, and events that may be on their way."""

    confirmations: int = 0
    events_left: int = 0


class JobBook:
    """The live jobs of one worker. Synchronous: changes state, calls sinks, does no I/O."""

    def __init__(self) -> None:
        self._jobs: dict[str, _Job] = {}
        # An id can be used again at once, and must not get its predecessor's events.
        self._leaving: dict[str, _Leaving] = {}
        # Over the life of a process: what was cancelled, and what it confirmed of that.
        self.cancelled = 0
        self.confirmed = 0

    @property
    def live_jobs(self) -> int:
        return len(self._jobs)

    @property
    def is_empty(self) -> bool:
        """True if nothing is expected of the worker."""
        return not self._jobs and not self._leaving

    def add(self, job_id: str, sink: EventSink, terms: RunTerms = DEFAULT_TERMS) -> None:
        """Raises RemoteProtocolError."""
        if job_id in self._jobs:
            raise RemoteProtocolError("the job is running already", code=Code.ALREADY_EXISTS)
        if len(self._jobs) + len(self._leaving) >= JOBS_MAX:
            raise RemoteProtocolError("too many jobs for one worker", code=Code.BUSY)
        self._jobs[job_id] = _Job(sink, Allowance(terms))

    def remove(self, job_id: str) -> bool:
        """Forget a job; False if it is not live. The worker is expected to confirm."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return False
        leaving = self._leaving.setdefault(job_id, _Leaving())
        leaving.confirmations += 1
        self.cancelled += 1
        leaving.events_left += job.allowance.events_left + _EVENTS_AROUND_OUTPUT
        return True

    def confirm_removal(self, job_id: str) -> None:
        """Raises WorkerProtocolError."""
        leaving = self._leaving.get(job_id)
        if leaving is None:
            raise WorkerProtocolError("the worker confirms what it was not told")
        leaving.confirmations -= 1
        self.confirmed += 1
        if not leaving.confirmations:
            del self._leaving[job_id]

    def deliver(self, events: Iterable[EngineEvent]) -> int:
        """Hand each event to its job, and drop those of cancelled ones; returns how many had a job.

        Raises WorkerProtocolError where they make no sense.
        """
        jobs = self._jobs
        delivered = 0
        for event in events:
            leaving = self._leaving.get(event.job_id)
            if leaving is not None:
                leaving.events_left -= 1
                if leaving.events_left < 0:
                    raise WorkerProtocolError("a cancelled job answers without end")
                continue
            job = jobs.get(event.job_id)
            if job is None or job.is_parked:
                raise WorkerProtocolError("the worker speaks of a job that it does not have")
            if isinstance(event, Produced):
                if not job.is_started:
                    raise WorkerProtocolError("a job answered before it started")
                job.allowance.take(event)
            elif isinstance(event, Started):
                if job.is_started:
                    raise WorkerProtocolError("a job started twice")
                job.is_started = True
            else:
                _check_end(job, event)
                del jobs[event.job_id]
            job.sink(event)
            delivered += 1
        return delivered

    def fail_all(self, code: Code, message: str) -> None:
        """End every live job: its worker is gone."""
        self.forget_cancelled()
        for job_id in tuple(self._jobs):
            self.fail(job_id, code, message)

    def fail(self, job_id: str, code: Code, message: str) -> None:
        """End a job that its worker does not have any more."""
        job = self._jobs.pop(job_id)
        job.sink(Failed(job_id, code, message, Units(output_tokens=job.allowance.tokens)))

    def drop(self, job_id: str) -> None:
        """Forget a job that its worker does not have: there is nothing to confirm."""
        self._jobs.pop(job_id, None)

    def park(self, job_id: str) -> None:
        """Keep a live job whose process is gone until `rerun`."""
        self._jobs[job_id].is_parked = True

    def rerun(self, job_id: str, terms: RunTerms) -> None:
        """Expect a live job's events from the beginning: another process runs it."""
        self._jobs[job_id] = _Job(self._jobs[job_id].sink, Allowance(terms))

    def forget_cancelled(self) -> None:
        """Nothing more is on its way: the process is gone."""
        self._leaving.clear()
        self.confirmed = self.cancelled


def _check_end(job: _Job, event: Completed | Failed) -> None:
    if isinstance(event, Completed) and not job.is_started:
        raise WorkerProtocolError("a job finished before it started")


class JobEvents:
    """One job's events in order, for one reader; iteration ends after Completed or Failed."""

    def __init__(self) -> None:
        self._queue: deque[EngineEvent] = deque()
        self._arrival = trio.Event()
        self._tokens = 0
        self.has_ended = False

    def __aiter__(self) -> AsyncIterator[EngineEvent]:
        return self

    async def __anext__(self) -> EngineEvent:
        while not self._queue:
            if self.has_ended:
                raise StopAsyncIteration
            self._arrival = trio.Event()
            await self._arrival.wait()
        return self._queue.popleft()

    def push(self, event: EngineEvent) -> bool:
        """False if the reader is too far behind: then the job ends for it, with a Failed."""
        if len(self._queue) >= QUEUED_EVENTS_MAX and isinstance(event, Produced):
            units = Units(output_tokens=self._tokens)
            self.push(Failed(event.job_id, Code.BUSY, "the reader stopped reading", units))
            return False
        if isinstance(event, Produced):
            self._tokens += len(event.token_ids)
        self._queue.append(event)
        self.has_ended = isinstance(event, Completed | Failed)
        self._arrival.set()
        return True


@asynccontextmanager
async def open_job(
    worker: JobWorker, job_id: str, payload: bytes, *, terms: RunTerms = DEFAULT_TERMS
) -> AsyncIterator[JobEvents]:
    """Run a job for as long as the block is open: leaving it early cancels the job.

    A reader that falls behind loses the job, never its neighbours' progress. Raises as `submit`.
    """
    events = JobEvents()

    def receive(event: EngineEvent) -> None:
        if not events.push(event):
            worker.cancel(job_id)

    worker.submit(job_id, payload, receive, terms=terms)
    try:
        yield events
    finally:
        if not events.has_ended:
            worker.cancel(job_id)
