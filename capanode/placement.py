"""Which model runs on which GPU, with how much of its memory: the node's plans put through the
memory ledger.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from capanode.errors import NoRoomForModelError
from capanode.gpus import Gpu
from capanode.memory_ledger import MemoryNeed, place, promised_room
from capanode.workers import ModelPlan
from protocol.messages import Task

_MIB = 1024**2
_GIB = 1024**3

# What a step computes in between, for the largest batch; of the weights, and at least. Estimates:
# not seen on a GPU yet.
_WORKSPACE_PERCENT = 10
_WORKSPACE_BYTES_MIN = 512 * _MIB
# Some thousand tokens of an ordinary model: with less it could take no job.
_CACHE_BYTES_MIN = 512 * _MIB
# More tokens than any 256 streams of the longest contexts hold.
_CACHE_BYTES_MAX = 256 * _GIB


@dataclass(frozen=True, slots=True)
class ModelPlacement:
    """`refused` are the models that fit on no GPU, with why."""

    plans: tuple[ModelPlan, ...]
    refused: tuple[tuple[ModelPlan, NoRoomForModelError], ...] = ()

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """Those that run something."""
        used = {plan.gpu.device.uuid: plan.gpu for plan in self.plans if plan.gpu is not None}
        return tuple(used.values())


def place_models(plans: Sequence[ModelPlan], gpus: Sequence[Gpu]) -> ModelPlacement:
    """Give each plan a device and its bytes; without GPUs they stay on the processor."""
    if not gpus:
        return ModelPlacement(tuple(plans))
    by_uuid = {gpu.device.uuid: gpu for gpu in gpus}
    room = {uuid: promised_room(gpu.free_bytes) for uuid, gpu in by_uuid.items()}
    ledger, refused = place([memory_need(plan) for plan in plans], room)
    placed = []
    for plan in plans:
        promise = ledger.promises.get(plan.digest)
        if promise is not None:
            placed.append(replace(plan, gpu=by_uuid[promise.device], promise=promise))
    return ModelPlacement(
        tuple(placed),
        tuple(
            (plan, NoRoomForModelError(str(refused[plan.digest])))
            for plan in plans
            if plan.digest in refused
        ),
    )


def memory_need(plan: ModelPlan) -> MemoryNeed:
    """What a model takes on a device, from its files: its weights are loaded as they are stored."""
    generates = plan.manifest.task is Task.CAUSAL_LM
    return MemoryNeed(
        model=plan.digest,
        weights_bytes=plan.bytes,
        workspace_bytes=max(_WORKSPACE_BYTES_MIN, plan.bytes * _WORKSPACE_PERCENT // 100),
        cache_min_bytes=_CACHE_BYTES_MIN if generates else 0,
        cache_max_bytes=_CACHE_BYTES_MAX if generates else 0,
    )
