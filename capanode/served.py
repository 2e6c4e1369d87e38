"""One model that the node serves: its worker, its seats, its speed and its price together."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import trio

from capanode.engines.base import EngineInfo
from capanode.measurements import Speed
from capanode.seats import Seats
from capanode.worker.jobs import JobWorker, WorkerState
from protocol.codec import encode
from protocol.features import Feature
from protocol.ids import Digest
from protocol.limits import KIB
from protocol.manifest import ModelManifest
from protocol.offers import BATCH_PERCENT_DEFAULT, Hardware, ModelLoad, ModelOffer
from protocol.pricing import PriceSheet


class ModelWorker(JobWorker, Protocol):
    """A worker with its own task; `capanode.worker.supervisor` has the one with a process."""

    async def run(
        self, *, task_status: trio.TaskStatus[EngineInfo] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Keep the worker running until cancelled. `started` once it is ready for jobs; raises
        NodeError if it never gets there."""
        ...


class LoadedOnDemand(Protocol):
    """A model that is not always in memory: `capanode.swapped_worker`."""

    @property
    def load_ms(self) -> int:
        """How long a job that comes now waits until it is loaded; 0 if it is."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether it is in memory, or others would give way to it now."""
        ...


_NOT_OFFERED = frozenset(
    {
        WorkerState.UNAVAILABLE,
        WorkerState.DEVICE_LOST,
        WorkerState.STOPPED,
        WorkerState.LOAD_FAILED,
    }
)
_TAKES_JOBS = frozenset({WorkerState.READY, WorkerState.COLD, WorkerState.LOADING})

# Of the 28 KiB of an offer: some ten tensor models say what they take and answer.
SIGNATURES_BYTES_MAX = 2 * KIB


@dataclass(slots=True)
class ServedModel:
    """What clients can lease here. `speed` and `price` are settled before it is offered."""

    name: str
    digest: Digest
    manifest: ModelManifest
    worker: JobWorker
    seats: Seats
    speed: Speed
    price: PriceSheet
    # Of the processor, where its work is priced by them.
    threads: int = 1
    # What runs it, where that is not what the node's offer says of all.
    hardware: Hardware | None = None
    with_vllm: bool = False
    batch_percent: int = BATCH_PERCENT_DEFAULT
    # For the owner; empty if there is nothing to say.
    notice: str = ""
    # None for a model that is always in memory.
    on_demand: LoadedOnDemand | None = None
    jobs_done: int = 0
    output_tokens_done: int = 0

    @property
    def is_available(self) -> bool:
        """Jobs can be handed to it now, if there is room for it in memory."""
        return self.worker.state in _TAKES_JOBS

    @property
    def load_ms(self) -> int:
        """How long a job that comes now waits until it is loaded; 0 if it is."""
        return 0 if self.on_demand is None else self.on_demand.load_ms

    @property
    def has_room(self) -> bool:
        """False while it is cold, and no other model gives way to it."""
        return self.on_demand is None or self.on_demand.has_room

    @property
    def is_offered(self) -> bool:
        """False once its worker was given up, and while its GPU is gone. One that is being started
        again stays in the offer: load reports say that it is away, and offers are dear."""
        return self.worker.state not in _NOT_OFFERED

    def offer(self) -> ModelOffer:
        info = self.worker.info
        assert info is not None, "a model is offered after its worker was ready once"
        return ModelOffer(
            name=self.name,
            manifest_digest=self.digest,
            task=info.task,
            quantization=info.quantization,
            context_tokens=info.context_tokens,
            slots=self.seats.slots,
            queue_max=self.seats.queue_max,
            prefill_tps=self.speed.prefill_tps,
            decode_tps=self.speed.decode_tps,
            price=self.price,
            features=(*info.features, Feature.LATE_PAYLOAD),
            chat_format=info.chat_format,
            batch_percent=self.batch_percent,
            signature=info.signature,
            dimensions=info.dimensions,
            load_ms=self.load_ms,
        )

    def load(self) -> ModelLoad:
        if not self.has_room:
            # Full: a job that waits for its turn comes when another model is idle.
            return ModelLoad(self.digest, self.seats.slots, self.seats.queue_max, available=True)
        return ModelLoad(
            self.digest, self.seats.running, self.seats.queued, available=self.is_available
        )


def within_signature_room(offers: Sequence[ModelOffer]) -> tuple[ModelOffer, ...]:
    """The offers, without the signatures that would make the node's offer too large to travel. Such
    a model is sold all the same: its clients have to know what it takes."""
    room = SIGNATURES_BYTES_MAX
    kept = []
    for offer in offers:
        size = len(encode(offer.signature)) if offer.signature is not None else 0
        kept.append(offer if size <= room else replace(offer, signature=None))
        room -= size if size <= room else 0
    return tuple(kept)
