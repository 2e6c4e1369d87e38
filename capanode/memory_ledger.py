"""Which bytes of which device belong to which worker.

A worker that took what is free at its start would race with the next one. So the node promises each
its bytes before it starts any: weights, the least cache that serves a job, and workspace, and then
shares out what is left as cache. A model for which there is no room is refused by name. Pure: no
driver is asked here.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

_MIB = 1024**2
_GIB = 1024**3

# What CUDA itself holds for each process on a card (its context and the libraries' kernels), which
# no allocator counts. Reports of other projects say 0.3 to 0.6 GiB; not seen by us.
CONTEXT_BYTES = 640 * _MIB
# Of what is free at the node's start this much is promised: fragments, and a desktop's windows.
PROMISED_PERCENT = 94


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What one model needs on a device. `cache_min_bytes` is the least that lets it serve,
    `cache_max_bytes` the most that it has a use for."""

    model: str
    weights_bytes: int
    workspace_bytes: int
    cache_min_bytes: int = 0
    cache_max_bytes: int = 0
    # It is to be in memory whatever else is.
    is_first: bool = False

    @property
    def least_bytes(self) -> int:
        return self.weights_bytes + self.workspace_bytes + self.cache_min_bytes + CONTEXT_BYTES


@dataclass(frozen=True, slots=True)
class MemoryPromise:
    """Bytes of one device that are one worker's alone."""

    model: str
    device: str
    weights_bytes: int
    workspace_bytes: int
    cache_bytes: int

    @property
    def allocated_bytes(self) -> int:
        """What the worker's allocator may take; the context is beside it."""
        return self.weights_bytes + self.workspace_bytes + self.cache_bytes

    @property
    def bytes(self) -> int:
        return self.allocated_bytes + CONTEXT_BYTES


class NoRoomError(Exception):
    """No device has room for this model; the message says how much is short."""


class MemoryLedger:
    """The promises of one node. `room` counts what may be promised of each device."""

    def __init__(self, room: Mapping[str, int]) -> None:
        self._room = dict(room)
        self._promises: dict[str, MemoryPromise] = {}

    @property
    def promises(self) -> Mapping[str, MemoryPromise]:
        """By model."""
        return self._promises

    def left_bytes(self, device: str) -> int:
        promised = sum(made.bytes for made in self._promises.values() if made.device == device)
        return self._room[device] - promised

    def promise(self, need: MemoryNeed) -> MemoryPromise:
        """The least that the model needs, on the device with the most room: so models spread, and
        a lone one gets the largest card. Raises NoRoomError; nothing is promised then."""
        if need.model in self._promises:
            raise ValueError(f"{need.model} has its memory already")
        device = max(self._room, key=self.left_bytes, default=None)
        if device is None or self.left_bytes(device) < need.least_bytes:
            left_bytes = 0 if device is None else max(0, self.left_bytes(device))
            raise NoRoomError(
                f"it needs {need.least_bytes / _GIB:.1f} GiB of a GPU's memory, and at most "
                f"{left_bytes / _GIB:.1f} GiB are left on one: serve fewer models, a smaller or "
                "quantized one, or stop what else uses the card"
            )
        made = MemoryPromise(
            need.model, device, need.weights_bytes, need.workspace_bytes, need.cache_min_bytes
        )
        self._promises[need.model] = made
        return made

    def release(self, model: str) -> None:
        """Give a model's bytes back, once its worker is gone."""
        self._promises.pop(model, None)

    def share_out(self, needs: Iterable[MemoryNeed]) -> None:
        """Promise what is left as cache, by the size of the models, which grows with what a token
        of their cache takes. A model that is full leaves its share to the others."""
        hungry = {need.model: need for need in needs if need.model in self._promises}
        for device in self._room:
            on_device = [need for need in hungry.values() if self._is_on(need, device)]
            while on_device and self.left_bytes(device) > _MIB:
                on_device = self._share_once(device, on_device)

    def _share_once(self, device: str, needs: Sequence[MemoryNeed]) -> list[MemoryNeed]:
        """One round; returns who could take still more."""
        left_bytes = self.left_bytes(device)
        total = sum(need.weights_bytes for need in needs) or 1
        wanting = []
        for need in needs:
            made = self._promises[need.model]
            share = left_bytes * need.weights_bytes // total
            cache_bytes = min(need.cache_max_bytes, made.cache_bytes + share)
            cache_bytes = max(cache_bytes, made.cache_bytes)
            self._promises[need.model] = replace(made, cache_bytes=cache_bytes)
            if made.cache_bytes < cache_bytes < need.cache_max_bytes:
                wanting.append(need)
        # If all of them took all that there was, nothing is left to share.
        return wanting if len(wanting) < len(needs) else []

    def _is_on(self, need: MemoryNeed, device: str) -> bool:
        return self._promises[need.model].device == device


def promised_room(free_bytes: int) -> int:
    """How much of a device may be promised, if so much is free before our first worker starts."""
    return free_bytes * PROMISED_PERCENT // 100


def place(
    needs: Sequence[MemoryNeed], room: Mapping[str, int]
) -> tuple[MemoryLedger, dict[str, NoRoomError]]:
    """Promise memory to as many models as there is room for, the largest first after those that
    must be loaded, and share out the rest as cache. Returns the refusals by model."""
    ledger = MemoryLedger(room)
    refused: dict[str, NoRoomError] = {}
    for need in sorted(needs, key=lambda need: (not need.is_first, -need.least_bytes, need.model)):
        try:
            ledger.promise(need)
        except NoRoomError as error:
            refused[need.model] = error
    ledger.share_out(needs)
    return ledger, refused
