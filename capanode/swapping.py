"""Models that are loaded when a job needs them, in place of those that have none.

A load begins with the job: its payload is here as a whole, and a slot of the model is its own. A
node does not see a lease before that, and a lease that never comes to a job costs no model its
place. Until the model is ready its jobs wait here. Which models leave is `capanode.residency`'s to
decide. One swap runs at a time: two models that load from one disk are each half as fast.
"""

from collections.abc import Callable, Sequence

import structlog
import trio

from capanode.errors import ModelNotLoadedError, NodeError
from capanode.milestones import OnMilestone, model_failed, model_swapped
from capanode.residency import Residency
from capanode.swapped_worker import OnState, SwappedWorker
from capanode.workers import ModelPlan, WorkerPool
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import Digest
from protocol.limits import LOAD_MS_MAX

log = structlog.get_logger(__name__)

# What made a load fail (a full card, a slow disk) may have passed by then.
TRY_AGAIN_AFTER_S = 900.0
# When a job may come again that found a swap under way, or all models in use.
_RETRY_MS = 1_000


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
        """See `Swapper`, as of all that the worker calls."""
        return not self._is_swapping and self._victims_for(worker) is not None

    def note_use(self, worker: SwappedWorker) -> None:
        self._residency.note_use(worker.plan.digest, trio.current_time())
        self._used.set()

    def begin_swap(self, worker: SwappedWorker) -> None:
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
