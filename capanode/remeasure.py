"""Measures models again: if the machine was busy the first time, or if real jobs say otherwise.

Only while the node has had no job for a while and other programs are quiet; a measurement during
which a job came is thrown away.
"""

from collections.abc import Callable

import structlog
import trio

from capanode.errors import BenchmarkError
from capanode.node import Node
from capanode.observed_speed import ObservedSpeed
from capanode.served import ServedModel
from capanode.worker.jobs import WorkerState
from protocol.ids import Digest

log = structlog.get_logger(__name__)

SAMPLE_EVERY_S = 1.0
# A pause between two jobs of a conversation is no quiet machine.
IDLE_FOR_S = 60.0
# A machine that is never quiet enough is not measured all day.
AGAIN_AFTER_S = 900.0


class Remeasurer:
    """`is_quiet` says whether other programs have left the machine alone lately."""

    def __init__(self, node: Node, *, is_quiet: Callable[[], bool]) -> None:
        self._node = node
        self._is_quiet = is_quiet
        self._observed: dict[Digest, ObservedSpeed] = {}
        self._counts: dict[Digest, tuple[int, int]] = {}
        self._due_at: dict[Digest, float] = {}
        self._idle_since = 0.0

    async def run(self) -> None:
        """Until cancelled."""
        self._idle_since = sampled_at = trio.current_time()
        while True:
            await trio.sleep(SAMPLE_EVERY_S)
            now = trio.current_time()
            passed_s, sampled_at = now - sampled_at, now
            for model in tuple(self._node.models.values()):
                self._sample(model, passed_s)
            if self._node.jobs.live_jobs:
                self._idle_since = now
            elif now - self._idle_since >= IDLE_FOR_S and self._is_quiet():
                await self._measure_one(now)

    def _sample(self, model: ServedModel, passed_s: float) -> None:
        running = model.seats.running
        before, tokens = self._counts.get(model.digest, (0, model.output_tokens_done))
        self._counts[model.digest] = (running, model.output_tokens_done)
        observed = self._observed.setdefault(model.digest, ObservedSpeed())
        if running == before:
            rate = (model.output_tokens_done - tokens) / passed_s
            observed.note(rate, running=running)
        if observed.contradicts(model.speed):
            log.info("speed_doubted", model=model.name, claimed_tps=model.speed.decode_tps)
            self._node.doubt_speed(model)
            observed.clear()

    async def _measure_one(self, now: float) -> None:
        for model in self._node.models.values():
            is_due = now >= self._due_at.get(model.digest, 0.0)
            if (
                is_due
                and model.worker.state is WorkerState.READY
                and not self._node.is_speed_settled(model)
            ):
                self._due_at[model.digest] = now + AGAIN_AFTER_S
                try:
                    await self._node.measure_again(model)
                except BenchmarkError as error:
                    log.warning("model_not_measured", model=model.name, error=str(error))
                return
