"""What each account's jobs on a model came to since this process began, as Triton's statistics have
it. The statistics of all accounts together are the operator's (`coordinator.gateway.metrics`)."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.buyer.result import PurchaseResult
from coordinator.gateway.http.oip.shapes import PlainUse
from protocol.ids import PeerId

# Pairs of an account and a model; the least used go first. About 5 MB.
_KEPT_MAX = 10_000
_NS_PER_MS = 1_000_000


@dataclass(slots=True)
class Tally:
    """How often, and how long in all."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        self.count += 1
        self.ns += ns


# Triton's names. What it calls input and output is copying on a device; here it is no time.
_TALLIES = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(slots=True)
class ModelUse:
    """The jobs of one account on one model. `last_ms` is in milliseconds since 1970."""

    last_ms: int = 0
    tallies: dict[str, Tally] = field(default_factory=lambda: {name: Tally() for name in _TALLIES})

    def add(self, other: "ModelUse") -> None:
        self.last_ms = max(self.last_ms, other.last_ms)
        for name, tally in other.tallies.items():
            self.tallies[name].count += tally.count
            self.tallies[name].ns += tally.ns

    def to_plain(self) -> PlainUse:
        done = self.tallies["success"].count
        return {
            "last_inference": self.last_ms,
            "inference_count": done,
            "execution_count": done,
            "inference_stats": {
                name: {"count": tally.count, "ns": tally.ns} for name, tally in self.tallies.items()
            },
        }


class ModelUses:
    """Of all accounts, by what their requests call a model."""

    def __init__(self) -> None:
        self._of: OrderedDict[tuple[PeerId, str], ModelUse] = OrderedDict()

    def note_success(
        self, owner: PeerId, model: str, outcome: PurchaseResult, *, ns: int, now_ms: int
    ) -> None:
        """`ns` is the time from the request to the end of its answer."""
        use = self._use(owner, model)
        use.last_ms = now_ms
        use.tallies["success"].add(ns)
        for name in ("compute_input", "compute_output"):
            use.tallies[name].add(0)
        if outcome.receipt is not None:
            stated = outcome.receipt.message
            use.tallies["queue"].add(stated.queued_ms * _NS_PER_MS)
            computed_ms = max(0, stated.total_ms - stated.queued_ms)
            use.tallies["compute_infer"].add(computed_ms * _NS_PER_MS)

    def note_failure(self, owner: PeerId, model: str, *, ns: int) -> None:
        self._use(owner, model).tallies["fail"].add(ns)

    def sum(self, owner: PeerId, names: Iterable[str]) -> ModelUse:
        """Of one model, under all of its names."""
        total = ModelUse()
        for name in names:
            found = self._of.get((owner, name))
            if found is not None:
                total.add(found)
        return total

    def _use(self, owner: PeerId, model: str) -> ModelUse:
        use = self._of.setdefault((owner, model), ModelUse())
        self._of.move_to_end((owner, model))
        if len(self._of) > _KEPT_MAX:
            self._of.popitem(last=False)
        return use
