"""Nodes that cost a market its users: each kind of bad behaviour that was seen, on a real node.

The node's program is the real one; what is bad is its worker, its offer, or its power.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import trio

from capanode.engines.base import EngineEvent, Produced, Started
from capanode.worker.allowance import DEFAULT_TERMS, RunTerms
from capanode.worker.jobs import EventSink, WorkerState
from capanode.workers import ModelPlan
from protocol.errors import Code, RemoteProtocolError
from protocol.messages import Task
from protocol.pricing import PriceSheet
from sim.options import SimMachine
from sim.sim_node import SimNode
from sim.sim_worker import Ailments, SimWorker, text_of
from sim.vices import Vice

_DRIP_S = 5.0
_STALLS_AFTER_TOKENS = 3
_FLAP_S = 3.0
_SLOTS_CLAIMED = 1_000


def tempting(machine: SimMachine) -> SimMachine:
    """The same machine at half price, with a thousand slots on offer."""
    price = machine.price
    half = PriceSheet(price.input_nano_per_mtok // 2, price.output_nano_per_mtok // 2)
    return replace(
        machine, name="tempting", price=half, slots=_SLOTS_CLAIMED, queue_max=_SLOTS_CLAIMED
    )


class BadWorker(SimWorker):
    """A worker with a vice."""

    def __init__(
        self,
        vice: Vice,
        task: Task,
        machine: SimMachine,
        ailments: Ailments,
        *,
        on_state: Callable[[WorkerState], None],
    ) -> None:
        super().__init__(task, machine, ailments, on_state=on_state)
        self._vice = vice

    def submit(
        self, job_id: str, payload: bytes, sink: EventSink, *, terms: RunTerms = DEFAULT_TERMS
    ) -> None:
        if self._vice is Vice.REFUSING and not _is_own(job_id):
            raise RemoteProtocolError("this worker takes nothing", code=Code.BUSY)
        super().submit(job_id, payload, sink, terms=terms)

    def _step_s(self, batch: tuple[str, ...]) -> float:
        step_s = super()._step_s(batch)
        is_dripping = self._vice is Vice.DRIPPING and not all(map(_is_own, batch))
        return step_s + _DRIP_S if is_dripping else step_s

    def advance(self, job_id: str) -> Iterator[EngineEvent]:
        for event in super().advance(job_id):
            if isinstance(event, Started) or _is_own(job_id):
                yield event
            elif self._vice is Vice.SILENT:
                continue
            elif isinstance(event, Produced) and self._vice is Vice.GARBAGE:
                wrong = tuple((token_id + 1) % 50_000 for token_id in event.token_ids)
                yield replace(event, token_ids=wrong, text="".join(map(text_of, wrong)))
            elif self._vice is Vice.STALLING and self._tokens_of(job_id) > _STALLS_AFTER_TOKENS:
                continue
            else:
                yield event

    def _tokens_of(self, job_id: str) -> int:
        live = self._live.get(job_id)
        # A job that is no longer live has just produced its last token.
        return _STALLS_AFTER_TOKENS + 1 if live is None else live.done or 0


class BadNode(SimNode):
    """A node with a vice; `misbehave` is the part of it that needs time."""

    def __init__(self, vice: Vice, *args: Any, **kwargs: Any) -> None:
        self.vice = vice
        # Whether it is in the market; its power may be off all the same.
        self.is_active = True
        super().__init__(*args, **kwargs)

    def worker(self, plan: ModelPlan, *, on_state: Callable[[WorkerState], None]) -> SimWorker:
        worker = BadWorker(
            self.vice, plan.manifest.task, self._machine, self.ailments, on_state=on_state
        )
        self.workers.append(worker)
        return worker

    async def misbehave(self) -> None:
        while self.vice is Vice.FLAPPING:
            await trio.sleep(_FLAP_S)
            if self.is_active:
                self.host.kill()
            await trio.sleep(_FLAP_S)
            if self.is_active:
                self.host.revive()


def _is_own(job_id: str) -> bool:
    """A node with a vice measures itself as an honest one does: it wants to look fast."""
    return job_id.startswith("benchmark-")
