"""A model whose process comes and goes, as one worker to the rest of the node."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from capanode.engines.base import EngineInfo, Failed
from capanode.errors import NodeError
from capanode.load_cache import KnownLoad
from capanode.served import ModelWorker
from capanode.worker.allowance import DEFAULT_TERMS, RunTerms
from capanode.worker.jobs import EventSink, WorkerExit, WorkerState
from capanode.workers import ModelPlan, WorkerPool
from protocol.errors import Code, RemoteProtocolError
from protocol.limits import LOAD_MS_MAX
from protocol.pricing import Units

# The slowest of the last few is offered: a file that the system has in memory loads faster.
_LOADS_REMEMBERED = 3
# Offers say it in tenths of a second, so that they need not change with every load.
_STEP_MS = 100

OnState = Callable[[WorkerState], None]


class Swapper(Protocol):
    """Who decides when a worker's process comes and goes: `capanode.swapping` has the one."""

    def can_load(self, worker: "SwappedWorker") -> bool:
        """Whether a swap could begin now."""
        ...

    def begin_swap(self, worker: "SwappedWorker") -> None:
        """Raises RemoteProtocolError (BUSY); then nothing has changed."""
        ...

    def note_use(self, worker: "SwappedWorker") -> None:
        """A job of it began or ended."""
        ...

    async def load_at_start(self, worker: "SwappedWorker") -> None:
        """Into room that is there, however long it takes. Raises NodeError."""
        ...


@dataclass(frozen=True, slots=True)
class _WaitingJob:
    payload: bytes
    sink: EventSink
    terms: RunTerms


class SwappedWorker:
    """A `ModelWorker` whose process comes and goes. Jobs that come while it is not there wait."""

    def __init__(self, swapper: Swapper, plan: ModelPlan, on_state: OnState) -> None:
        self.plan = plan
        self._swapper = swapper
        self._on_state = on_state
        self._phase = WorkerState.COLD
        self._inner: ModelWorker | None = None
        self._info: EngineInfo | None = None
        self._failure: WorkerExit | None = None
        self._waiting: dict[str, _WaitingJob] = {}
        self._loads_ms: deque[int] = deque(maxlen=_LOADS_REMEMBERED)
        self._scope = trio.CancelScope()
        self._gone = trio.Event()

    @property
    def state(self) -> WorkerState:
        if self._phase is WorkerState.READY and self._inner is not None:
            return self._inner.state
        return self._phase

    @property
    def info(self) -> EngineInfo | None:
        return self._info

    @property
    def last_ending(self) -> WorkerExit | None:
        if self._failure is not None or self._inner is None:
            return self._failure
        return self._inner.last_ending

    @property
    def usual_load_ms(self) -> int:
        """Of its latest loads the slowest; at least one step, so that it is told."""
        return max(self._loads_ms, default=_STEP_MS)

    @property
    def load_ms(self) -> int:
        """See `LoadedOnDemand.load_ms`."""
        is_away = self._phase in (WorkerState.COLD, WorkerState.LOADING)
        return min(self.usual_load_ms, LOAD_MS_MAX) if is_away else 0

    @property
    def has_room(self) -> bool:
        """See `LoadedOnDemand.has_room`."""
        return self._phase is not WorkerState.COLD or self._swapper.can_load(self)

    def know(self, known: KnownLoad) -> None:
        """What an earlier run has measured."""
        self._info = known.info
        self._loads_ms.append(known.load_ms)

    def submit(
        self, job_id: str, payload: bytes, sink: EventSink, *, terms: RunTerms = DEFAULT_TERMS
    ) -> None:
        """See `JobWorker.submit`. Raises RemoteProtocolError (BUSY) where it is cold and no other
        model gives way."""
        if self._phase is WorkerState.COLD:
            self._swapper.begin_swap(self)
        self._swapper.note_use(self)
        if self._phase is WorkerState.LOADING:
            if job_id in self._waiting:
                raise RemoteProtocolError("the job is waiting already", code=Code.ALREADY_EXISTS)
            self._waiting[job_id] = _WaitingJob(payload, sink, terms)
        elif self._phase is WorkerState.READY and self._inner is not None:
            self._inner.submit(job_id, payload, sink, terms=terms)
        else:
            raise RemoteProtocolError(
                f"the model is not running: {self._phase}", code=Code.MODEL_UNAVAILABLE
            )

    def cancel(self, job_id: str) -> None:
        """See `JobWorker.cancel`."""
        self._swapper.note_use(self)
        if self._waiting.pop(job_id, None) is None and self._inner is not None:
            self._inner.cancel(job_id)

    async def run(
        self, *, task_status: trio.TaskStatus[EngineInfo] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Load it at the start; `started` then. Its later loads are the swapper's. Raises
        NodeError."""
        await self._swapper.load_at_start(self)
        assert self._info is not None
        task_status.started(self._info)
        await trio.sleep_forever()

    # For the swapper.

    def begin_load(self) -> None:
        self._failure = None
        self._set_phase(WorkerState.LOADING)

    async def load(self, pool: WorkerPool, nursery: trio.Nursery) -> None:
        """Start its process; it runs in `nursery`. Raises NodeError."""
        began_at = trio.current_time()
        inner = pool.worker(self.plan, on_state=self._hear)
        self._scope, self._gone = trio.CancelScope(), trio.Event()
        scope, gone = self._scope, self._gone

        async def live(*, task_status: trio.TaskStatus[EngineInfo]) -> None:
            try:
                with scope:
                    await inner.run(task_status=task_status)
            finally:
                gone.set()

        await nursery.start(live)
        self._inner, self._info = inner, inner.info
        took_ms = 1_000 * (trio.current_time() - began_at)
        self._loads_ms.append(_STEP_MS * math.ceil(max(took_ms, 1.0) / _STEP_MS))
        self._set_phase(WorkerState.READY)
        self._hand_on(inner)

    async def unload(self) -> None:
        """Returns when its process is gone."""
        self._inner = None
        self.become_cold()
        self._scope.cancel()
        await self._gone.wait()

    def become_cold(self) -> None:
        """Jobs that come from now on find it not loaded."""
        self._set_phase(WorkerState.COLD)

    def fail(self, error: NodeError) -> None:
        """Its load has failed: it leaves the offer, and so do the jobs that wait."""
        self._inner = None
        self._failure = WorkerExit(Code.MODEL_UNAVAILABLE, str(error))
        self._set_phase(WorkerState.LOAD_FAILED)
        waiting, self._waiting = self._waiting, {}
        for job_id, job in waiting.items():
            # Why is the owner's to know.
            job.sink(Failed(job_id, Code.MODEL_UNAVAILABLE, "the model did not load", Units()))

    def _hand_on(self, inner: ModelWorker) -> None:
        waiting, self._waiting = self._waiting, {}
        for job_id, job in waiting.items():
            try:
                inner.submit(job_id, job.payload, job.sink, terms=job.terms)
            except RemoteProtocolError as error:
                job.sink(Failed(job_id, error.code, str(error), Units()))

    def _hear(self, state: WorkerState) -> None:
        """What a process says that is on its way in or out is the swapper's to tell."""
        if self._phase is WorkerState.READY:
            self._on_state(state)

    def _set_phase(self, phase: WorkerState) -> None:
        self._phase = phase
        self._on_state(phase)
