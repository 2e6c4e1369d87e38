"""What `capanode models recommend` reads of this machine: memory and disk, the models that are
here, and what the node that runs here has measured."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from capanode.config import NodeConfig
from capanode.errors import NotRunningError
from capanode.hardware import hardware_of, probe_machine, usable_gpus
from capanode.models.errors import ModelError
from capanode.models.peer_market import PeerOptions, going_prices
from capanode.models.recommend import Measured, Room, usable_memory
from capanode.models.store import ModelStore
from capanode.pricing_policy import UTILISATION
from capanode.status_socket import ask_status
from capanode.tasks import NODE_TASKS
from protocol.ids import Digest
from protocol.offers import Hardware
from protocol.pricing import PRICE_POSITIONS, PriceSheet

_SECONDS_PER_HOUR = 3_600


@dataclass(frozen=True, slots=True)
class FoundHere:
    """`here` are digests by name; `measured` is empty while no node runs, `prices` where no
    coordinator is listed or answers."""

    device: str
    room: Room
    here: Mapping[str, Digest]
    measured: Mapping[str, Measured]
    prices: Mapping[str, PriceSheet]


def look_around(config: NodeConfig, *, is_online: bool) -> FoundHere:
    """Asks the coordinators for prices if `is_online`. Blocks for some seconds at most. Raises
    ModelError if the store cannot be used."""
    machine = probe_machine()
    hardware = hardware_of(machine, usable_gpus(machine))
    store = ModelStore(config.model_store)
    room = room_of(hardware, disk_free_bytes=shutil.disk_usage(config.model_store).free)
    try:
        status = ask_status(config.status_socket)
    except NotRunningError:
        status = {}
    coordinators = tuple(one.address for one in config.coordinators) if is_online else ()
    markets = PeerOptions((), coordinators, config.dial_policy)
    return FoundHere(
        device=hardware.name,
        room=room,
        here=store.names(),
        measured=measured_by(status, store),
        prices=going_prices(markets) if coordinators else {},
    )


def room_of(hardware: Hardware, *, disk_free_bytes: int) -> Room:
    """A model runs on one card, or on the processor."""
    is_gpu = hardware.kind != "cpu"
    return Room(usable_memory(hardware.memory_bytes, is_gpu=is_gpu), disk_free_bytes, is_gpu)


def measured_by(status: Mapping[str, Any], store: ModelStore) -> dict[str, Measured]:
    """What the running node's status says of its models: what each brings in a busy hour, half of
    it sold, by what it is sold for: whichever of input and output brings less."""
    found = {}
    for model in status.get("models", ()):
        try:
            earned_by = NODE_TASKS[store.find(model["digest"]).manifest.task].earned_by
        except ModelError:
            continue
        brings = [
            model["speed"][earned_by[position.name]] * model["price"][position.field] / position.per
            for position in PRICE_POSITIONS
            if position.name in earned_by
        ]
        nano = min(brings, default=0.0) * _SECONDS_PER_HOUR * UTILISATION
        found[str(model["name"])] = Measured(int(nano))
    return found
