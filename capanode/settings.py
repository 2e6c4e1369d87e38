"""Each setting of a node: its name, its default, what it means, and how its text is read.

One table serves the file, the environment, the command line, `config show` and the comments in a
new configuration file. How the sources are merged is in `protocol.programs.settings`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capanode.pricing_policy import DEFAULT_WAGES
from capanode.sandbox.limits import NICE_DEFAULT, NICE_MAX
from protocol.errors import RemoteProtocolError
from protocol.ids import PeerId, parse_peer_id
from protocol.limits import NAME_CHARS_MAX, OFFER_MODELS_MAX
from protocol.messages import SLOTS_MAX, DataCollection
from protocol.pricing import PRICE_POSITIONS, PriceSheet
from protocol.programs.log import LEVELS, LogFormat
from protocol.programs.settings import (
    Setting,
    read_addresses,
    read_choice,
    read_count,
    read_credits,
    read_items,
    read_path,
    read_text,
)

THREADS_MAX = 1_024
DRAIN_S_MAX = 3_600

_PRICE_FIELDS = {position.name: position.field for position in PRICE_POSITIONS}
_COUNT_KEYS = {"slots": SLOTS_MAX, "threads": THREADS_MAX}


@dataclass(frozen=True, slots=True)
class CoordinatorAddress:
    """Where a coordinator listens. Its leases are accepted because the operator listed it."""

    peer: PeerId
    address: str

    def __str__(self) -> str:
        return self.address


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """A model to serve. What is None is decided by the engine (slots), the machine (threads) or
    the pricing policy (price)."""

    name: str
    slots: int | None = None
    threads: int | None = None
    price: PriceSheet | None = None


def read_coordinators(raw: Any) -> tuple[CoordinatorAddress, ...]:
    return tuple(map(_read_coordinator, read_addresses(raw)))


def read_models(raw: Any) -> tuple[ModelSettings, ...]:
    """A table per model from TOML, or `NAME[,slots=4][,threads=2][,input_per_mtok=0.02]…` texts,
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
        raise ValueError('a table per model: [models."NAME"]')
    unknown = set(table) - set(_PRICE_FIELDS) - set(_COUNT_KEYS)
    if unknown:
        known = ", ".join([*_COUNT_KEYS, *_PRICE_FIELDS])
        raise ValueError(f"for a model only {known}, not {sorted(unknown)[0]!r}")
    counts = {
        key: read_count(1, high)(table[key]) for key, high in _COUNT_KEYS.items() if key in table
    }
    prices = {
        field: read_credits(table[key]) for key, field in _PRICE_FIELDS.items() if key in table
    }
    return ModelSettings(name, **counts, price=PriceSheet(**prices) if prices else None)


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "data_dir",
        Path("~/.capanode"),
        read_path,
        "Where the node keeps its key, its configuration, its models and its receipts.",
        '"~/.capanode"',
    ),
    Setting(
        "listen",
        ("/ip4/0.0.0.0/tcp/4101",),
        read_addresses,
        "Where clients reach this node.",
        '["/ip4/0.0.0.0/tcp/4101"]',
    ),
    Setting(
        "announce",
        (),
        read_addresses,
        "What to tell others instead, if a router forwards another address to this node.",
        '["/ip4/203.0.113.7/tcp/4101"]',
    ),
    Setting(
        "coordinators",
        (),
        read_coordinators,
        "The markets to join. Leases of these coordinators, and of no others, are accepted.",
        '["/ip4/198.51.100.4/tcp/4100/p2p/12D3KooW…"]',
        flag="coordinator",
    ),
    Setting("region", "", read_text, "Where this machine stands; clients may ask for it.", '"eu"'),
    Setting(
        "models",
        (),
        read_models,
        "What to serve; all that the store holds if none is listed. Prices are in credits.",
        "",
        flag="model",
    ),
    Setting(
        "model_store",
        None,
        read_path,
        "Where models lie; nodes may share a store. Default: models/ in the data directory.",
        '"/srv/models"',
    ),
    Setting(
        "data_collection",
        DataCollection.DENY,
        lambda raw: DataCollection(read_choice(tuple(DataCollection))(raw)),
        "Whether this node may keep prompts; `deny` promises clients that it does not.",
        '"deny"',
    ),
    Setting(
        "queue_max",
        16,
        read_count(0, SLOTS_MAX),
        "Jobs per model that may wait for a slot; the next one is sent to another node.",
        "16",
    ),
    Setting(
        "per_client_max",
        64,
        read_count(1, SLOTS_MAX),
        "Jobs that one client may have here at once, running or waiting.",
        "64",
    ),
    Setting(
        "worker_nice",
        NICE_DEFAULT,
        read_count(0, NICE_MAX),
        "How far models stand back (as nice(1)) when the processor is busy with other things.",
        str(NICE_DEFAULT),
    ),
    Setting(
        "price_cpu_core_hour",
        DEFAULT_WAGES.cpu_core_hour_nano,
        read_credits,
        "What an hour of one busy CPU core shall earn; sets the prices that you leave open.",
        '"0.02"',
    ),
    Setting(
        "price_gpu_gib_hour",
        DEFAULT_WAGES.gpu_gib_hour_nano,
        read_credits,
        "What an hour of one GiB of busy GPU memory shall earn (an 80 GiB card: 1.60).",
        '"0.02"',
    ),
    Setting(
        "drain_s",
        30,
        read_count(0, DRAIN_S_MAX),
        "How long jobs may go on after Ctrl-C before they are cut.",
        "30",
    ),
    Setting("log_level", "info", read_choice(LEVELS), "How much to log.", '"info"'),
    Setting(
        "log_format",
        LogFormat.CONSOLE,
        lambda raw: LogFormat(read_choice(tuple(LogFormat))(raw)),
        "For people (console) or for programs (json).",
        '"console"',
    ),
    Setting(
        "status_socket",
        None,
        read_path,
        "Where `capanode status` asks. Default: status.sock in the data directory.",
        '"/run/capanode.sock"',
    ),
)
