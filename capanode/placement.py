"""Which model runs on which device, with how much of its memory: the node's plans put through the
memory ledger. A model for which there is no room beside the others is cold: it takes the place of
others when it has a job (`capanode.swapping`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from capanode.device_status import PROCESSOR
from capanode.engine_choice import may_share_cards
from capanode.errors import NodeError, NoRoomForModelError
from capanode.gpus import Gpu
from capanode.memory_ledger import CONTEXT_BYTES, MemoryNeed, MemoryPromise, place, promised_room
from capanode.residency import Footprint
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
# No machine that we know has more cards, and vLLM shares a model among so many and no more here.
_GROUP_MAX = 8
# More tokens than any 256 streams of the longest contexts hold.
_CACHE_BYTES_MAX = 256 * _GIB
# On the processor, beside what Python and torch take (about as much as a context of CUDA): the
# weights, and half as much for the cache and the steps.
_PROCESSOR_PERCENT = 150


@dataclass(frozen=True, slots=True)
class ModelPlacement:
    """`refused` are the models that fit on no device, with why. `room` is what models may take that
    share memory which does not hold all of them, by device."""

    plans: tuple[ModelPlan, ...]
    refused: tuple[tuple[ModelPlan, NodeError], ...] = ()
    room: Mapping[str, int] = field(default_factory=dict)

    @property
    def gpus(self) -> tuple[Gpu, ...]:
        """Those that run something."""
        used = {gpu.device.uuid: gpu for plan in self.plans for gpu in plan.gpus}
        return tuple(used.values())


def place_models(
    plans: Sequence[ModelPlan],
    gpus: Sequence[Gpu],
    *,
    load_on_demand: bool = True,
    has_vllm: bool = False,
) -> ModelPlacement:
    """Give each plan its GPU, or several with vLLM, and its bytes. Without GPUs they stay on the
    processor."""
    if not gpus:
        return ModelPlacement(tuple(plans))
    by_uuid = {gpu.device.uuid: gpu for gpu in gpus}
    room = {uuid: promised_room(gpu.free_bytes) for uuid, gpu in by_uuid.items()}
    needs: dict[str, MemoryNeed] = {
        plan.digest: memory_need(plan, has_vllm=has_vllm) for plan in plans
    }
    ledger, refused = place(list(needs.values()), room, _alike(gpus))
    promises = dict(ledger.promises)
    cold: dict[str, MemoryPromise] = {}
    if load_on_demand:
        # A model on several cards keeps them: to free one of them alone helps no other.
        giving = [
            made
            for made in promises.values()
            if not needs[made.model].is_first and not made.partners
        ]
        shared = {device: ledger.left_bytes(device) for device in room}
        for made in giving:
            shared[made.device] += made.bytes
        found = [_cold_promise(needs[model], giving, shared) for model in refused]
        cold = {promise.model: promise for promise in found if promise is not None}
    promises |= cold
    placed = [
        replace(
            plan,
            gpus=tuple(by_uuid[device] for device in own.devices),
            promise=own,
            with_vllm=plan.with_vllm or bool(own.partners),
            keep_loaded=plan.keep_loaded or bool(own.partners),
            is_cold=plan.digest in cold,
        )
        for plan in plans
        if (own := promises.get(plan.digest)) is not None
    ]
    sizes = {own.model: Footprint(own.device, own.bytes) for own in promises.values()}
    return _sharing(
        placed,
        sizes,
        room,
        tuple(
            (plan, NoRoomForModelError(str(refused[plan.digest])))
            for plan in plans
            if plan.digest in refused and plan.digest not in cold
        ),
    )


def place_on_processor(
    plans: Sequence[ModelPlan], room_bytes: int, *, is_owners_limit: bool
) -> ModelPlacement:
    """Load as many as the machine's memory holds, in their order, beside those to keep. What does
    not even fit alone is refused if the owner has set the limit; where it is only our estimate, it
    is tried, with all others unloaded."""
    needed: dict[str, int] = {plan.digest: _processor_bytes(plan) for plan in plans}
    shared_bytes = room_bytes - sum(needed[p.digest] for p in plans if p.keep_loaded)
    left_bytes = shared_bytes
    placed: list[ModelPlan] = []
    refused = []
    for plan in plans:
        size = needed[plan.digest] if is_owners_limit else min(needed[plan.digest], shared_bytes)
        if plan.keep_loaded:
            placed.append(plan)
        elif not 0 < size <= shared_bytes:
            refused.append((plan, NoRoomForModelError(_too_large(size, shared_bytes))))
        else:
            placed.append(replace(plan, is_cold=size > left_bytes))
            left_bytes -= size if size <= left_bytes else 0
            needed[plan.digest] = size
    sizes = {digest: Footprint(PROCESSOR, size) for digest, size in needed.items()}
    return _sharing(placed, sizes, {PROCESSOR: room_bytes}, tuple(refused))


def _alike(gpus: Sequence[Gpu]) -> list[list[str]]:
    """Sets of cards that may share a model. Instances of one card (MIG) do not reach each other."""
    kinds: dict[tuple[str, int], list[str]] = {}
    for gpu in gpus:
        if not gpu.device.capability_minors:
            kinds.setdefault((gpu.name, gpu.memory_bytes), []).append(gpu.device.uuid)
    return list(kinds.values())


def memory_need(plan: ModelPlan, *, has_vllm: bool = False) -> MemoryNeed:
    """What a model takes on a GPU, from its files: its weights are loaded as they are stored."""
    generates = plan.manifest.task is Task.CAUSAL_LM
    return MemoryNeed(
        model=plan.digest,
        weights_bytes=plan.bytes,
        workspace_bytes=max(_WORKSPACE_BYTES_MIN, plan.bytes * _WORKSPACE_PERCENT // 100),
        cache_min_bytes=_CACHE_BYTES_MIN if generates else 0,
        cache_max_bytes=_CACHE_BYTES_MAX if generates else 0,
        is_first=plan.keep_loaded,
        devices_max=_GROUP_MAX if has_vllm and may_share_cards(plan) else 1,
    )


def _cold_promise(
    need: MemoryNeed, giving: Iterable[MemoryPromise], shared: Mapping[str, int]
) -> MemoryPromise | None:
    """What a cold model gets, on the card where most can be taken from others: the place of the
    smallest model that makes room for it, or else all that there is. None if that is too little."""
    device = max(shared, key=lambda one: (shared[one], one))
    if shared[device] < need.least_bytes:
        return None
    places = (made.bytes for made in giving if made.device == device)
    whole = min((size for size in places if size >= need.least_bytes), default=shared[device])
    cache_bytes = min(need.cache_max_bytes, need.cache_min_bytes + whole - need.least_bytes)
    return MemoryPromise(need.model, device, need.weights_bytes, need.workspace_bytes, cache_bytes)


def _sharing(
    plans: Sequence[ModelPlan],
    sizes: Mapping[str, Footprint],
    room: Mapping[str, int],
    refused: tuple[tuple[ModelPlan, NoRoomForModelError], ...],
) -> ModelPlacement:
    """Say of the models on devices with cold ones what each takes, and of those devices what is not
    kept by one model for good."""
    devices = {sizes[plan.digest].device for plan in plans if plan.is_cold}
    left = {device: room[device] for device in devices}
    found = []
    for plan in plans:
        size = sizes[plan.digest]
        if plan.keep_loaded:
            for device in devices.intersection(_devices_of(plan, size)):
                left[device] -= size.bytes
        elif size.device in devices:
            plan = replace(plan, footprint=size)
        found.append(plan)
    return ModelPlacement(tuple(found), refused, left)


def _devices_of(plan: ModelPlan, size: Footprint) -> tuple[str, ...]:
    return (size.device,) if plan.promise is None else plan.promise.devices


def _processor_bytes(plan: ModelPlan) -> int:
    return CONTEXT_BYTES + plan.bytes * _PROCESSOR_PERCENT // 100


def _too_large(needed_bytes: int, room_bytes: int) -> str:
    return (
        f"it needs about {max(needed_bytes, 0) / _GIB:.1f} GiB of memory, and beside the models to "
        f"keep loaded there are {max(room_bytes, 0) / _GIB:.1f} GiB: see memory_max_gib"
    )
