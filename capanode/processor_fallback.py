"""Goes on from the processor when a card is lost under way, if its owner has allowed that
(`if_gpu_fails = cpu`), and back to the card when it works again.

A model whose card is gone leaves the offer at once (`capanode.worker.supervisor`). It comes back as
what it is on the processor: measured, priced and offered as that.
"""

from collections.abc import Callable
from dataclasses import dataclass

import structlog
import trio

from capanode.engines.base import EngineInfo
from capanode.errors import NodeError
from capanode.milestones import OnMilestone, model_failed, model_loading
from capanode.node import Node
from capanode.served import ServedModel
from capanode.worker.jobs import WorkerState
from capanode.workers import ModelPlan, WorkerPool
from protocol.ids import Digest

log = structlog.get_logger(__name__)

LOOK_EVERY_S = 5.0
# A card that its driver resets is back before a model is loaded and measured elsewhere.
LOST_FOR_S = 60.0


@dataclass(frozen=True, slots=True)
class _StandIn:
    """`original` waits for its card; the worker on the processor ends with `scope`."""

    original: ServedModel
    plan: ModelPlan
    scope: trio.CancelScope


class ProcessorFallback:
    """`on_processor` is the plan of a model without its card; `is_wanted` what the owner says."""

    def __init__(
        self,
        node: Node,
        pool: WorkerPool,
        on_processor: Callable[[ModelPlan], ModelPlan],
        *,
        is_wanted: Callable[[], bool],
        on_milestone: OnMilestone,
    ) -> None:
        self._node = node
        self._pool = pool
        self._on_processor = on_processor
        self._is_wanted = is_wanted
        self._tell = on_milestone
        self._lost_at: dict[Digest, float] = {}
        self._stand_ins: dict[Digest, _StandIn] = {}
        # Those that do not run on the processor either: tried once.
        self._failed: set[Digest] = set()

    async def run(self) -> None:
        """Until cancelled."""
        async with trio.open_nursery() as nursery:
            while True:
                await trio.sleep(LOOK_EVERY_S)
                for plan in self._node.plans:
                    await self._look(plan, nursery)

    async def _look(self, plan: ModelPlan, nursery: trio.Nursery) -> None:
        model = self._node.models.get(plan.digest)
        if model is None:
            return
        if model.digest in self._stand_ins:
            self._go_back(model.digest)
        elif model.worker.state is not WorkerState.DEVICE_LOST:
            self._lost_at.pop(model.digest, None)
        else:
            lost_at = self._lost_at.setdefault(model.digest, trio.current_time())
            is_over = trio.current_time() - lost_at >= LOST_FOR_S
            if is_over and self._is_wanted() and model.digest not in self._failed:
                await self._stand_in(plan, model, nursery)

    async def _stand_in(self, plan: ModelPlan, model: ServedModel, nursery: trio.Nursery) -> None:
        ending = model.worker.last_ending
        why = "" if ending is None else f": {ending.message}"
        slower = self._on_processor(plan)
        worker = self._pool.worker(slower, on_state=lambda _: self._node.worker_changed())
        scope = trio.CancelScope()

        async def live(*, task_status: trio.TaskStatus[EngineInfo]) -> None:
            with scope:
                await worker.run(task_status=task_status)

        log.warning("model_moves_to_processor", model=model.name)
        self._tell(model_loading(model.name))
        try:
            await nursery.start(live)
            stand_in = await self._node.take_over(slower, worker)
        except NodeError as error:
            scope.cancel()
            self._failed.add(model.digest)
            self._tell(model_failed(model.name, error))
            return
        stand_in.notice = f"it runs on the processor until its GPU works again{why}"
        self._stand_ins[model.digest] = _StandIn(model, plan, scope)

    def _go_back(self, digest: Digest) -> None:
        """To the card, if that works and no job is cut by it."""
        found = self._stand_ins[digest]
        is_back = found.original.worker.state is WorkerState.READY
        if is_back and not self._node.admission.has_jobs(digest):
            log.info("model_back_on_its_card", model=found.original.name)
            self._node.put_back(found.plan, found.original)
            found.scope.cancel()
            del self._stand_ins[digest]
            self._lost_at.pop(digest, None)
