"""Which models are in memory, and which of them give way to one that is not.

What each takes is fixed when the node starts, so that a model is as large after every load as its
offer says. Pure: `capanode.swapping` does what is decided here, one swap at a time.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from protocol.ids import Digest

# A model that had a job a moment ago stays: the client's next request, and leases that the node has
# not seen yet, come within a second or two.
REST_S = 2.0


@dataclass(frozen=True, slots=True)
class Footprint:
    """What a model takes of one device while it is loaded. One that `stays` is never evicted."""

    device: str
    bytes: int
    stays: bool = False


class Residency:
    """`room` is what models may take of each device. Times are trio's."""

    def __init__(self, room: Mapping[str, int], footprints: Mapping[Digest, Footprint]) -> None:
        self._room = dict(room)
        self._footprints = dict(footprints)
        self._loaded: set[Digest] = set()
        self._used_at: dict[Digest, float] = {}
        self._rests_until: dict[Digest, float] = {}

    @property
    def loaded(self) -> frozenset[Digest]:
        return frozenset(self._loaded)

    @property
    def rest_ends_at(self) -> float:
        """From then on every loaded model may be evicted that has no job."""
        return max((self._rests_until.get(model, 0.0) for model in self._loaded), default=0.0)

    def left_bytes(self, device: str) -> int:
        prints = (self._footprints[model] for model in self._loaded)
        return self._room[device] - sum(one.bytes for one in prints if one.device == device)

    def keep(self, model: Digest) -> None:
        """Never evict it from now on."""
        taken = self._footprints[model]
        self._footprints[model] = Footprint(taken.device, taken.bytes, stays=True)

    def note_use(self, model: Digest, now_s: float) -> None:
        """A job of it began or ended."""
        self._used_at[model] = now_s
        self._rest(model, now_s + REST_S)

    def victims_for(
        self, model: Digest, *, is_in_use: Callable[[Digest], bool], now_s: float
    ) -> tuple[Digest, ...] | None:
        """The models to unload before this one can be loaded: the least recently used of those that
        have no job, and no more than needed. None if there is no room even then."""
        wanted = self._footprints[model]
        missing = wanted.bytes - self.left_bytes(wanted.device)
        idle = [
            other
            for other in sorted(self._loaded, key=lambda one: (self._used_at.get(one, 0.0), one))
            if self._may_leave(other, wanted.device, now_s) and not is_in_use(other)
        ]
        chosen: list[Digest] = []
        for other in idle:
            if missing <= 0:
                break
            chosen.append(other)
            missing -= self._footprints[other].bytes
        if missing > 0:
            return None
        # A large one among them may have made the sacrifice of small ones needless.
        for other in reversed(chosen[:-1]):
            if missing + self._footprints[other].bytes <= 0:
                chosen.remove(other)
                missing += self._footprints[other].bytes
        return tuple(chosen)

    def swap(self, model: Digest, victims: Iterable[Digest]) -> None:
        """From now on the model has the memory of these, which leave."""
        self._loaded.difference_update(victims)
        taken = self._footprints[model]
        assert self.left_bytes(taken.device) >= taken.bytes, "a model has room of its own"
        self._loaded.add(model)

    def note_loaded(self, model: Digest, now_s: float, *, took_s: float) -> None:
        """It stays for as long as its load took, so that a node spends no more than half of its
        time on loads, whatever comes."""
        self._used_at[model] = now_s
        self._rest(model, now_s + max(took_s, REST_S))

    def leave(self, model: Digest) -> None:
        """It is in memory no more."""
        self._loaded.discard(model)

    def _may_leave(self, model: Digest, device: str, now_s: float) -> bool:
        taken = self._footprints[model]
        is_rested = now_s >= self._rests_until.get(model, 0.0)
        return taken.device == device and not taken.stays and is_rested

    def _rest(self, model: Digest, until: float) -> None:
        self._rests_until[model] = max(self._rests_until.get(model, 0.0), until)
