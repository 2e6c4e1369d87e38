"""What a node's settings hold that no other program has: coordinators and models.

The settings themselves are the fields of `capanode.config.NodeConfig`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from protocol.errors import RemoteProtocolError
from protocol.ids import PeerId, parse_peer_id
from protocol.limits import NAME_CHARS_MAX, OFFER_MODELS_MAX
from protocol.offers import SLOTS_MAX
from protocol.pricing import PRICE_NANO_MAX, PRICE_POSITIONS, PriceSheet
from protocol.programs.kinds import (
    KeyValueError,
    ValueKind,
    read_addresses,
    read_count,
    read_credits,
    read_items,
    read_switch,
)

THREADS_MAX = 1_024

_PRICE_FIELDS = {position.name: position.field for position in PRICE_POSITIONS}
_COUNT_KEYS = {"slots": SLOTS_MAX, "threads": THREADS_MAX}
_KEEP_LOADED = "keep_loaded"
_ENGINE = "engine"


class IfGpuFails(StrEnum):
    """What becomes of models that were meant for a GPU which cannot be used."""

    STOP = "stop"
    CPU = "cpu"


class EngineWish(StrEnum):
    """Which engine an operator wants for a model. Without a word the node decides."""

    OWN = "own"
    VLLM = "vllm"


@dataclass(frozen=True, slots=True)
class CoordinatorAddress:
    """Where a coordinator listens. Its leases are accepted because the operator listed it."""

    peer: PeerId
    address: str

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """A model to serve. What is None is decided by the engine (slots), the machine (threads), the
    pricing policy (price) or model and machine (engine). One to `keep_loaded` gives its memory to
    no other model."""

    name: str
    slots: int | None = None
    threads: int | None = None
    price: PriceSheet | None = None
    keep_loaded: bool = False
    engine: EngineWish | None = None


def read_coordinators(raw: Any) -> tuple[CoordinatorAddress, ...]:
    return tuple(map(_read_coordinator, read_addresses(raw)))


def read_models(raw: Any) -> tuple[ModelSettings, ...]:
    """A table per model from TOML, or `NAME[,slots=4][,engine=vllm][,input_per_mtok=0.02]…` texts,
    separated by `;` in the environment."""
    if isinstance(raw, Mapping):
        models = tuple(_read_model(name, table) for name, table in raw.items())
    else:
        models = tuple(_read_model_text(text) for text in read_items(raw, ";"))
    if len({model.name for model in models}) != len(models):
        raise ValueError("each model once")
    if len(models) > OFFER_MODELS_MAX:
        raise ValueError(f"at most {OFFER_MODELS_MAX} models")
    return models


def _read_coordinator(address: str) -> CoordinatorAddress:
    _, found, peer = address.rpartition("/p2p/")
    try:
        if found:
            return CoordinatorAddress(parse_peer_id(peer), address)
    except RemoteProtocolError:
        pass
    raise ValueError(
        "addresses that end in /p2p/ and the coordinator's peer id, as `coordinator start` prints"
    )


def _read_model_text(text: str) -> ModelSettings:
    name, *pairs = (part.strip() for part in text.split(","))
    split = [pair.partition("=") for pair in pairs]
    if not all(separator for _, separator, _ in split):
        raise ValueError("NAME, then settings such as slots=4, separated by commas")
    return _read_model(name, {key: value for key, _, value in split})


def _read_model(name: str, table: Any) -> ModelSettings:
    if not 0 < len(name) <= NAME_CHARS_MAX or not isinstance(table, Mapping):
        raise KeyValueError('a table per model: [models."NAME"]', (name,))
    for key in sorted(set(table) - {*_PRICE_FIELDS, *_COUNT_KEYS, _KEEP_LOADED, _ENGINE}):
        known = ", ".join([*_COUNT_KEYS, _KEEP_LOADED, _ENGINE, *_PRICE_FIELDS])
        raise KeyValueError(f"for a model only {known}, not {key!r}", (name, key))
    counts: dict[str, int] = {}
    prices: dict[str, int] = {}
    keep_loaded = False
    engine: EngineWish | None = None
    for key, raw in table.items():
        try:
            if key in _COUNT_KEYS:
                counts[key] = read_count(1, _COUNT_KEYS[key])(raw)
            elif key == _KEEP_LOADED:
                keep_loaded = read_switch(raw)
            elif key == _ENGINE:
                engine = _read_engine(raw)
            else:
                field = _PRICE_FIELDS[key]
                prices[field] = read_credits(raw)
                # The price of cached input alone says nothing: it is held to that of input below.
                PriceSheet(**{"input_nano_per_mtok": PRICE_NANO_MAX, field: prices[field]})
        except ValueError as error:
            raise KeyValueError(str(error), (name, key)) from None
    try:
        price = PriceSheet(**prices) if prices else None
    except ValueError as error:
        raise KeyValueError(str(error), (name,)) from None
    return ModelSettings(name, **counts, price=price, keep_loaded=keep_loaded, engine=engine)


def _read_engine(raw: Any) -> EngineWish:
    if not isinstance(raw, str) or raw not in set(EngineWish):
        raise ValueError(" or ".join(EngineWish))
    return EngineWish(raw)


COORDINATORS = ValueKind(read_coordinators, "multiaddresses with /p2p/", is_list=True)
MODELS = ValueKind(
    read_models,
    "names, each with slots, threads, engine and prices",
    tell=lambda models: ", ".join(model.name for model in models),
    is_list=True,
)
