"""What fits this machine and would earn: `capanode models recommend`. Pure.

What a model earns in an hour is its speed times its price times the share of an hour that is sold.
Speed and price are those of the node that runs here where it has measured the model. Otherwise the
speed is estimated from how fast memory streams the weights, and said to be; the price is what the
model goes for in the markets of the configuration, or else what models of that size go for at
public providers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from capanode.models.catalog import Catalog, CatalogEntry
from capanode.models.hub_catalog import HubEntry
from capanode.models.memory_need import NO_CACHE, largest_context, memory_need
from capanode.models.room import SPARE_BYTES
from capanode.pricing_policy import UTILISATION
from capanode.tasks import task_of_architecture
from protocol.pricing import PriceSheet

# Below this a chat model takes no conversation.
_CONTEXT_TOKENS_MIN = 2_048
# Of a card's memory; the driver and fragments of the allocator take the rest.
_GPU_SHARE = 0.95
# Of a machine's memory: its owner works on it, too.
_CPU_SHARE = 0.7
# Streams that share each pass over the weights when the node is busy.
_BATCH = 8
_SECONDS_PER_HOUR = 3_600
# Estimates: what memory of that kind streams in a second (a card of the 24 GiB class has 900 GB/s
# on paper; two channels of DDR4 have 40), and how many operations it does.
_GPU_BYTES_PER_S = 600e9
_GPU_OPERATIONS_PER_S = 30e12
_CPU_BYTES_PER_S = 20e9
_CPU_OPERATIONS_PER_S = 100e9
# A multiplication and an addition for each parameter.
_OPERATIONS_PER_PARAMETER = 2
# Nano-credits for a million output tokens, by the most parameters that the row is for.
_PRICES = (
    (2_000_000_000, 20_000_000),
    (5_000_000_000, 40_000_000),
    (10_000_000_000, 80_000_000),
    (16_000_000_000, 150_000_000),
    (40_000_000_000, 300_000_000),
)
_PRICE_MAX = 500_000_000
# Of vectors and scores, whose tokens are all input and are computed together.
_INPUT_PRICE = 20_000_000
_INPUT_TOKENS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Room:
    """What models may take here. `is_gpu` if that is a card's memory."""

    memory_bytes: int
    disk_free_bytes: int
    is_gpu: bool


class Basis(StrEnum):
    """What a model's earnings were computed from."""

    MEASURED = "measured"
    MARKET_PRICE = "market_price"  # at an estimated speed
    ESTIMATE = "estimate"


@dataclass(frozen=True, slots=True)
class Measured:
    """Of a model that the node here serves: what a busy hour brings at its own price."""

    nano_per_hour: int


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One model. `problem` says why it does not run here; empty if it does. `context_tokens` is
    the longest context that fits."""

    name: str
    use: str
    source: str
    parameters: int
    bytes: int
    licence: str
    is_gated: bool
    is_pinned: bool
    is_here: bool
    context_tokens: int
    memory_bytes: int
    nano_per_hour: int
    basis: Basis
    problem: str


def usable_memory(memory_bytes: int, *, is_gpu: bool) -> int:
    """Of one card, or of the machine."""
    return int(memory_bytes * (_GPU_SHARE if is_gpu else _CPU_SHARE))


def recommend(
    catalog: Catalog,
    room: Room,
    *,
    here: Mapping[str, str],
    measured: Mapping[str, Measured],
    prices: Mapping[str, PriceSheet],
) -> list[Recommendation]:
    """Every model of the catalog: those that run here first, the most profitable first. `here`,
    `measured` and `prices` go by name."""
    found = [_of_pinned(entry, room, here, measured) for entry in catalog.entries]
    found += [
        _of_hub(entry, room, here, earned=_earned(entry, room, measured, prices))
        for entry in catalog.hub
    ]
    return sorted(found, key=lambda one: (bool(one.problem), -one.nano_per_hour, one.name))


def _earned(
    entry: HubEntry,
    room: Room,
    measured: Mapping[str, Measured],
    prices: Mapping[str, PriceSheet],
) -> tuple[int, Basis]:
    """Nano-credits of a busy hour, and what they were computed from."""
    if (own := measured.get(entry.name)) is not None:
        return own.nano_per_hour, Basis.MEASURED
    if (going := prices.get(entry.name)) is not None:
        is_chat = entry.use == "chat"
        price = going.output_nano_per_mtok if is_chat else going.input_nano_per_mtok
        return _estimate(entry, room, price), Basis.MARKET_PRICE
    return _estimate(entry, room, _price(entry)), Basis.ESTIMATE


def _of_hub(
    entry: HubEntry, room: Room, here: Mapping[str, str], *, earned: tuple[int, Basis]
) -> Recommendation:
    context = largest_context(
        entry.bytes,
        entry.cache,
        context_tokens=entry.context_tokens,
        memory_bytes=room.memory_bytes,
    )
    is_here = entry.name in here
    nano_per_hour, basis = earned
    return Recommendation(
        name=entry.name,
        use=entry.use,
        source=str(entry.source),
        parameters=entry.parameters,
        bytes=entry.bytes,
        licence=entry.licence,
        is_gated=entry.is_gated,
        is_pinned=False,
        is_here=is_here,
        context_tokens=context,
        memory_bytes=memory_need(entry.bytes, entry.cache, context),
        nano_per_hour=nano_per_hour,
        basis=basis,
        problem=_problem(entry, room, context, is_here=is_here),
    )


def _problem(entry: HubEntry, room: Room, context_tokens: int, *, is_here: bool) -> str:
    if task_of_architecture(entry.architecture, is_sentence_encoder=True) is None:
        return f"no engine here runs {entry.architecture}"
    if context_tokens < min(_CONTEXT_TOKENS_MIN, entry.context_tokens):
        need = memory_need(entry.bytes, entry.cache, min(_CONTEXT_TOKENS_MIN, entry.context_tokens))
        return f"needs {need / 1e9:.1f} GB of memory, {room.memory_bytes / 1e9:.1f} can be used"
    if not is_here and entry.bytes + SPARE_BYTES > room.disk_free_bytes:
        return (
            f"needs {entry.bytes / 1e9:.1f} GB of disk, {room.disk_free_bytes / 1e9:.1f} are free"
        )
    return ""


def _of_pinned(
    entry: CatalogEntry, room: Room, here: Mapping[str, str], measured: Mapping[str, Measured]
) -> Recommendation:
    manifest = entry.manifest
    is_here = manifest.name in here
    own = measured.get(manifest.name)
    need = memory_need(entry.bytes, NO_CACHE, 0)
    problem = ""
    if need > room.memory_bytes:
        problem = f"needs {need / 1e9:.1f} GB of memory"
    elif not is_here and entry.work_bytes + SPARE_BYTES > room.disk_free_bytes:
        problem = f"needs {entry.work_bytes / 1e9:.1f} GB of disk"
    return Recommendation(
        name=manifest.name,
        use=manifest.task.value,
        source=manifest.source,
        parameters=0,
        bytes=entry.bytes,
        licence=manifest.licence,
        is_gated=False,
        is_pinned=True,
        is_here=is_here,
        context_tokens=manifest.context_tokens,
        memory_bytes=need,
        nano_per_hour=own.nano_per_hour if own else 0,
        basis=Basis.MEASURED if own else Basis.ESTIMATE,
        problem=problem,
    )


def _estimate(entry: HubEntry, room: Room, price: int) -> int:
    """Nano-credits of a busy hour, half of it sold, at `price` for a million tokens: memory or
    arithmetic decides, whichever is slower."""
    bytes_per_s = _GPU_BYTES_PER_S if room.is_gpu else _CPU_BYTES_PER_S
    operations_per_s = _GPU_OPERATIONS_PER_S if room.is_gpu else _CPU_OPERATIONS_PER_S
    is_chat = entry.use == "chat"
    tokens_per_s = min(
        bytes_per_s / entry.bytes * (_BATCH if is_chat else _INPUT_TOKENS_AT_ONCE),
        operations_per_s / (_OPERATIONS_PER_PARAMETER * entry.parameters),
    )
    return int(tokens_per_s * _SECONDS_PER_HOUR * UTILISATION * price / 1e6)


def _price(entry: HubEntry) -> int:
    """Of a million tokens, at public providers."""
    if entry.use != "chat":
        return _INPUT_PRICE
    return next((price for most, price in _PRICES if entry.parameters <= most), _PRICE_MAX)


def best(found: Sequence[Recommendation]) -> Recommendation | None:
    """The model to pull next: the most profitable that runs here, is not here yet, and whose
    licence needs no answer by hand first."""
    return next(
        (one for one in found if not one.problem and not one.is_here and not one.is_gated), None
    )
