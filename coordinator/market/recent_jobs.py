"""The last jobs that were asked for, by model, so that a node can learn why it was not chosen.

A decision does not look at why each of a hundred thousand nodes was passed over. It leaves the job
here, and a node that asks has the last few judged again, for itself alone.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass, replace

from coordinator.market.matching import HERE, Candidate, Job, Vantage
from protocol.ids import PeerId

# Enough to see a pattern; judging one takes a tenth of a millisecond.
JOBS_PER_MODEL = 24
MODELS_MAX = 1_024

_ELSEWHERE = Vantage(dials=True)


@dataclass(frozen=True, slots=True)
class RecentJob:
    """A job without what was true at its time only, and who got it: none if no node fitted."""

    job: Job
    winner: PeerId | None
    cost_nano: int
    total_ms: float


class RecentJobs:
    """By the name or digest that the jobs asked for."""

    def __init__(self) -> None:
        self._by_model: OrderedDict[str, deque[RecentJob]] = OrderedDict()

    def note(self, job: Job, winner: Candidate | None) -> None:
        """A job was matched."""
        kept = replace(
            job,
            deadline_at_ms=None,
            exclude=frozenset(),
            resting={},
            cache_at=None,
            vantage=_ELSEWHERE if job.vantage.dials else HERE,
        )
        recent = RecentJob(
            kept,
            None if winner is None else winner.node,
            0 if winner is None else winner.cost_nano,
            0.0 if winner is None else winner.latency.total_ms,
        )
        found = self._by_model.setdefault(job.model, deque(maxlen=JOBS_PER_MODEL))
        if winner is None and found and found[-1] == recent:
            return  # It waits for its turn, and is matched again and again.
        found.append(recent)
        self._by_model.move_to_end(job.model)
        if len(self._by_model) > MODELS_MAX:
            self._by_model.popitem(last=False)

    def of(self, *models: str) -> list[RecentJob]:
        """The last jobs that asked for one of these names and digests."""
        return [
            recent for model in dict.fromkeys(models) for recent in self._by_model.get(model, ())
        ]
