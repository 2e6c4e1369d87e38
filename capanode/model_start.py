"""Starts the models of a node: loads them, measures those that no earlier run has measured, and
hands each on that works. One that does not is left out, and told.
"""

from collections.abc import Callable, Sequence

import structlog
import trio

from capanode.errors import ModelNotLoadedError, NodeError
from capanode.load_cache import KnownLoad, LoadCache, load_key
from capanode.measurements import Speed
from capanode.milestones import OnMilestone, model_failed, model_loading, model_measuring
from capanode.model_speeds import ModelSpeeds
from capanode.served import ModelWorker
from capanode.swapped_worker import OnState
from capanode.swapping import ModelSwapper
from capanode.workers import ModelPlan, WorkerPool
from protocol.ids import Digest
from protocol.limits import LOAD_MS_MAX
from protocol.programs.shutdown import Stages

log = structlog.get_logger(__name__)

OnReady = Callable[[ModelPlan, ModelWorker, Speed], None]


class ModelStarter:
    """`on_ready` gets each model that can be served, `on_state` hears of every later change of its
    worker. Models that share memory are the swapper's."""

    def __init__(
        self,
        pool: WorkerPool,
        swapper: ModelSwapper,
        speeds: ModelSpeeds,
        loads: LoadCache,
        *,
        software: str,
        on_ready: OnReady,
        on_state: OnState,
        on_milestone: OnMilestone,
    ) -> None:
        self._pool = pool
        self._swapper = swapper
        self._speeds = speeds
        self._loads = loads
        self._software = software
        self._on_ready = on_ready
        self._on_state = on_state
        self._tell = on_milestone

    async def start(self, plans: Sequence[ModelPlan], stages: Stages) -> None:
        """Start all workers, then measure one after the other, so that none slows another down.
        Cold models come first, while there is room to measure those that are not known."""
        if any(plan.footprint is not None for plan in plans):
            await stages.start("workers", self._swapper.run)
        for plan in plans:
            if plan.is_cold:
                await self._start_cold(plan)
        hot = [plan for plan in plans if not plan.is_cold]
        ready = await self._start_together(hot, stages)
        for plan in hot:
            if plan.digest in ready:
                await self._measure(plan, ready[plan.digest])

    async def _start_together(
        self, plans: Sequence[ModelPlan], stages: Stages
    ) -> dict[Digest, ModelWorker]:
        ready: dict[Digest, ModelWorker] = {}

        async def start(plan: ModelPlan) -> None:
            pool = self._pool if plan.footprint is None else self._swapper
            worker = pool.worker(plan, on_state=self._on_state)
            self._tell(model_loading(plan.name))
            try:
                await stages.start("workers", worker.run)
            except NodeError as error:
                self._leave_out(plan, error)
            else:
                ready[plan.digest] = worker

        async with trio.open_nursery() as nursery:
            for plan in plans:
                nursery.start_soon(start, plan)
        return ready

    async def _start_cold(self, plan: ModelPlan) -> None:
        """Without loading it, if an earlier run has; else it is loaded once, and unloaded."""
        worker = self._swapper.worker(plan, on_state=self._on_state)
        key = load_key(plan, software=self._software)
        known = self._loads.find(key)
        if known is not None and (speed := self._speeds.known(plan, known.info.slots)) is not None:
            worker.know(known)
            self._on_ready(plan, worker, speed)
            return
        self._tell(model_loading(plan.name))
        try:
            await self._swapper.load_at_start(worker)
        except NodeError as error:
            self._leave_out(plan, error)
            return
        if worker.usual_load_ms > LOAD_MS_MAX:
            self._leave_out(plan, _too_slow(worker.usual_load_ms))
        elif await self._measure(plan, worker) and worker.info is not None:
            self._loads.keep(key, KnownLoad(worker.info, worker.usual_load_ms))
        await self._swapper.unload(worker)

    async def _measure(self, plan: ModelPlan, worker: ModelWorker) -> bool:
        """Whether it can be served."""
        assert worker.info is not None, "a worker that started has said what it is"
        speed = self._speeds.known(plan, worker.info.slots)
        if speed is None:
            self._tell(model_measuring(plan.name))
            try:
                speed = await self._speeds.measure(plan, worker)
            except NodeError as error:
                self._leave_out(plan, error)
                return False
        self._on_ready(plan, worker, speed)
        return True

    def _leave_out(self, plan: ModelPlan, error: NodeError) -> None:
        log.error("model_not_started", model=plan.name, error=str(error))
        self._tell(model_failed(plan.name, error))


def _too_slow(load_ms: int) -> ModelNotLoadedError:
    return ModelNotLoadedError(
        f"it does not fit beside the other models, and loading it takes {load_ms / 1_000:.0f} s, "
        f"longer than any job waits ({LOAD_MS_MAX // 1_000} s)"
    )
