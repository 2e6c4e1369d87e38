"""Models that are loaded when a job needs them, in place of those that have none.

A load begins with the job: its payload is here as a whole, and a slot of the model is its own. A
node does not see a lease before that, and a lease that never comes to a job costs no model its
place. Until the model is ready its jobs wait here. Which models leave is `capanode.residency`'s to
decide. One swap runs at a time: two models that load from one disk are each half as fast.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import structlog
import trio

from capanode.engines.base import EngineInfo, Failed
from capanode.errors import ModelNotLoadedError, NodeError
from capanode.load_cache import KnownLoad
from capanode.milestones import OnMilestone, model_failed, model_swapped
from capanode.residency import Residency
from capanode.served import ModelWorker
from capanode.worker.allowance import DEFAULT_TERMS, RunTerms
from capanode.worker.jobs import EventSink, WorkerExit, WorkerState
from capanode.workers import ModelPlan, WorkerPool
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import Digest
from protocol.limits import LOAD_MS_MAX
from protocol.pricing import Units

log = structlog.get_logger(__name__)

# What made a load fail (a full card, a slow disk) may have passed by then.
TRY_AGAIN_AFTER_S = 900.0
# The slowest of the last few is offered: a file that the system has in memory loads faster.
_LOADS_REMEMBERED = 3
# Offers say it in tenths of a second, so that they need not change with every load.
_STEP_MS = 100
# When a job may come again that found a swap under way, or all models in use.
_RETRY_MS = 1_000

OnState = Callable[[WorkerState], None]


@dataclass(frozen=True, slots=True)
class _WaitingJob:
    payload: bytes
    sink: EventSink
    terms: RunTerms


class SwappedWorker:
    """A `ModelWorker` whose process comes and goes. Jobs that come while it is not there wait."""

    def __init__(self, swapper: "ModelSwapper", plan: ModelPlan, on_state: OnState) -> None:
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


class ModelSwapper:
    """A `WorkerPool` of models that share memory which does not hold all of them. `run` is the life
    of their processes. `is_in_use` says whether a model has jobs."""

    def __init__(
        self,
        pool: WorkerPool,
        residency: Residency,
        *,
        is_in_use: Callable[[Digest], bool],
        on_change: Callable[[], None],
        on_milestone: OnMilestone,
    ) -> None:
        self._pool = pool
        self._residency = residency
        self._is_in_use = is_in_use
        self._on_change = on_change
        self._tell = on_milestone
        self._workers: dict[Digest, SwappedWorker] = {}
        self._is_swapping = False
        self._used = trio.Event()
        self._nursery: trio.Nursery | None = None

    def worker(self, plan: ModelPlan, *, on_state: OnState) -> SwappedWorker:
        """See `WorkerPool.worker`."""
        worker = SwappedWorker(self, plan, on_state)
        self._workers[plan.digest] = worker
        return worker

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await self._tell_rests()

    def can_load(self, worker: SwappedWorker) -> bool:
        """Whether a swap could begin now."""
        return not self._is_swapping and self._victims_for(worker) is not None

    def note_use(self, worker: SwappedWorker) -> None:
        """A job of it began or ended."""
        self._residency.note_use(worker.plan.digest, trio.current_time())
        self._used.set()

    def begin_swap(self, worker: SwappedWorker) -> None:
        """Raises RemoteProtocolError (BUSY); then nothing has changed."""
        victims = None if self._is_swapping else self._victims_for(worker)
        if victims is None:
            raise RemoteProtocolError(
                "the model is not loaded, and none that is gives way now",
                code=Code.BUSY,
                retry_after_ms=_RETRY_MS,
            )
        assert self._nursery is not None, "jobs come while the node runs"
        self._is_swapping = True
        self._residency.swap(worker.plan.digest, victims)
        leaving = [self._workers[victim] for victim in victims]
        for other in leaving:
            other.become_cold()
        worker.begin_load()
        self._nursery.start_soon(self._swap, worker, leaving)

    async def load_at_start(self, worker: SwappedWorker) -> None:
        """Into room that is there, however long it takes. Raises NodeError."""
        assert self._nursery is not None, "the swapper starts before its workers"
        digest = worker.plan.digest
        self._residency.swap(digest, ())
        worker.begin_load()
        try:
            await worker.load(self._pool, self._nursery)
        except NodeError:
            self._residency.leave(digest)
            raise
        self._note_loaded(worker)
        if worker.usual_load_ms > LOAD_MS_MAX:
            # No client waits so long for it: once evicted it could not come back.
            self._residency.keep(digest)

    async def unload(self, worker: SwappedWorker) -> None:
        """Make room for the next one, while the node starts."""
        await worker.unload()
        self._residency.leave(worker.plan.digest)

    async def _swap(self, worker: SwappedWorker, leaving: Sequence[SwappedWorker]) -> None:
        # The job that asked for it is one of many: what is logged from here on is of the model.
        structlog.contextvars.clear_contextvars()
        began_at = trio.current_time()
        for other in leaving:
            await other.unload()
        try:
            await self._load(worker)
        except NodeError as error:
            await self._undo(worker, leaving, error)
        else:
            took_s = trio.current_time() - began_at
            names = [other.plan.name for other in leaving]
            log.info("model_loaded", model=worker.plan.name, took_s=took_s, evicted=names)
            self._tell(model_swapped(worker.plan.name, took_s, names))
        self._is_swapping = False
        self._used.set()
        self._on_change()

    async def _load(self, worker: SwappedWorker) -> None:
        """Raises NodeError."""
        assert self._nursery is not None
        try:
            with trio.fail_after(LOAD_MS_MAX / 1_000):
                await worker.load(self._pool, self._nursery)
        except trio.TooSlowError:
            raise ModelNotLoadedError(
                f"it was not loaded within {LOAD_MS_MAX // 1_000} s: put the models on a faster "
                "disk, or serve fewer of them"
            ) from None
        self._note_loaded(worker)

    async def _undo(
        self, worker: SwappedWorker, leaving: Sequence[SwappedWorker], error: NodeError
    ) -> None:
        """The model leaves the offer for a while, and those that gave way to it come back."""
        assert self._nursery is not None
        self._give_up(worker, error)
        for other in leaving:
            self._residency.swap(other.plan.digest, ())
            other.begin_load()
            try:
                await self._load(other)
            except NodeError as again:
                self._give_up(other, again)

    def _give_up(self, worker: SwappedWorker, error: NodeError) -> None:
        assert self._nursery is not None
        log.error("model_not_loaded", model=worker.plan.name, error=str(error))
        self._residency.leave(worker.plan.digest)
        worker.fail(error)
        self._tell(model_failed(worker.plan.name, error))
        self._nursery.start_soon(self._try_again_later, worker)

    async def _try_again_later(self, worker: SwappedWorker) -> None:
        await trio.sleep(TRY_AGAIN_AFTER_S)
        worker.become_cold()

    def _victims_for(self, worker: SwappedWorker) -> tuple[Digest, ...] | None:
        return self._residency.victims_for(
            worker.plan.digest, is_in_use=self._is_in_use, now_s=trio.current_time()
        )

    def _note_loaded(self, worker: SwappedWorker) -> None:
        took_s = worker.usual_load_ms / 1_000
        self._residency.note_loaded(worker.plan.digest, trio.current_time(), took_s=took_s)

    async def _tell_rests(self) -> None:
        """A cold model can be loaded again when others have rested: that is worth a report."""
        while True:
            await self._used.wait()
            self._used = trio.Event()
            await trio.sleep_until(self._residency.rest_ends_at)
            self._on_change()
