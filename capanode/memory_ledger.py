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
    `cache_max_bytes` the most that it has a use for. If it fits on no one device, up to
    `devices_max` equal ones may share it."""

    model: str
    weights_bytes: int
    workspace_bytes: int
    cache_min_bytes: int = 0
    cache_max_bytes: int = 0
    # It is to be in memory whatever else is.
    is_first: bool = False
    devices_max: int = 1

    @property
    def least_bytes(self) -> int:
        return self.weights_bytes + self.workspace_bytes + self.cache_min_bytes + CONTEXT_BYTES

    def share_of(self, devices: int) -> "MemoryNeed":
        """What each of so many devices holds."""
        return replace(
            self,
            weights_bytes=-(-self.weights_bytes // devices),
            workspace_bytes=-(-self.workspace_bytes // devices),
            cache_min_bytes=-(-self.cache_min_bytes // devices),
            cache_max_bytes=self.cache_max_bytes // devices,
        )


@dataclass(frozen=True, slots=True)
class MemoryPromise:
    """Bytes of one device that are one worker's alone; as many on each of its other `partners`."""

    model: str
    device: str
    weights_bytes: int
    workspace_bytes: int
    cache_bytes: int
    partners: tuple[str, ...] = ()

    @property
    def devices(self) -> tuple[str, ...]:
        return (self.device, *self.partners)

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
    """The promises of one node. `room` counts what may be promised of each device; those of one of
    the `alike` sets may share a model."""

    def __init__(self, room: Mapping[str, int], alike: Sequence[Sequence[str]] = ()) -> None:
        self._room = dict(room)
        self._alike = alike
        self._promises: dict[str, MemoryPromise] = {}

    @property
    def promises(self) -> Mapping[str, MemoryPromise]:
        """By model."""
        return self._promises

    def left_bytes(self, device: str) -> int:
        promised = sum(made.bytes for made in self._promises.values() if device in made.devices)
        return self._room[device] - promised

    def promise(self, need: MemoryNeed) -> MemoryPromise:
        """The least that the model needs, on the device with the most room: so models spread, and
        a lone one gets the largest card. If none has it, on as few equal ones as do. Raises
        NoRoomError; nothing is promised then."""
        if need.model in self._promises:
            raise ValueError(f"{need.model} has its memory already")
        device = max(self._room, key=self.left_bytes, default=None)
        if device is None or self.left_bytes(device) < need.least_bytes:
            shared = self._promise_shared(need)
            if shared is not None:
                return shared
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

    def _promise_shared(self, need: MemoryNeed) -> MemoryPromise | None:
        # Heads of attention are split evenly, and their number is nearly always a multiple of 8.
        for count in (2, 4, 8):
            share = need.share_of(count)
            for devices in self._alike:
                best = sorted(devices, key=self.left_bytes, reverse=True)[:count]
                if count > need.devices_max or len(best) < count:
                    continue
                if self.left_bytes(best[-1]) >= share.least_bytes:
                    # In the order in which the devices are listed everywhere.
                    first, *others = (device for device in self._room if device in best)
                    made = MemoryPromise(
                        need.model,
                        first,
                        share.weights_bytes,
                        share.workspace_bytes,
                        share.cache_min_bytes,
                        tuple(others),
                    )
                    self._promises[need.model] = made
                    return made
        return None

    def release(self, model: str) -> None:
        """Give a model's bytes back, once its worker is gone."""
        self._promises.pop(model, None)

    def share_out(self, needs: Iterable[MemoryNeed]) -> None:
        """Promise what is left as cache, by the size of the models, which grows with what a token
        of their cache takes. A model that is full leaves its share to the others."""
        hungry = {need.model: need for need in needs if need.model in self._promises}
        for need in hungry.values():
            if self._promises[need.model].partners:
                self._share_evenly(need, hungry.values())
        for device in self._room:
            on_device = [need for need in hungry.values() if self._is_on(need, device)]
            while on_device and self.left_bytes(device) > _MIB:
                on_device = self._share_once(device, on_device)

    def _share_evenly(self, need: MemoryNeed, needs: Iterable[MemoryNeed]) -> None:
        """The same on each of its devices: what the fullest of them has for it."""
        made = self._promises[need.model]
        share = need.share_of(len(made.devices))
        beside = [self._promises[other.model] for other in needs]
        shares = []
        for device in made.devices:
            total = sum(one.weights_bytes for one in beside if device in one.devices)
            shares.append(self.left_bytes(device) * made.weights_bytes // max(1, total))
        cache_bytes = min(share.cache_max_bytes, made.cache_bytes + min(shares))
        self._promises[need.model] = replace(made, cache_bytes=max(cache_bytes, made.cache_bytes))

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
        """And on no other."""
        return self._promises[need.model].devices == (device,)


def promised_room(free_bytes: int) -> int:
    """How much of a device may be promised, if so much is free before our first worker starts."""
    return free_bytes * PROMISED_PERCENT // 100


def place(
    needs: Sequence[MemoryNeed], room: Mapping[str, int], alike: Sequence[Sequence[str]] = ()
) -> tuple[MemoryLedger, dict[str, NoRoomError]]:
    """Promise memory to as many models as there is room for, the largest first after those that
    must be loaded, and share out the rest as cache. Returns the refusals by model."""
    ledger = MemoryLedger(room, alike)
    refused: dict[str, NoRoomError] = {}
    for need in sorted(needs, key=lambda need: (not need.is_first, -need.least_bytes, need.model)):
        try:
            ledger.promise(need)
        except NoRoomError as error:
            refused[need.model] = error
    ledger.share_out(needs)
    return ledger, refused
