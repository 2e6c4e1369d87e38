"""How many leases of one class are kept ahead of its jobs, and which of them a job gets: decisions
about demand and age, without I/O. Times are in seconds of one clock."""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from protocol.envelope import Signed
from protocol.grants import Granted
from protocol.messages import JobRequest

# Without a job for so long there is no demand.
DEMAND_WITHIN_S = 5.0
# Jobs in that time before a lease is taken ahead: the first of a burst, and a lone one, are served
# as always.
_JOBS_MIN = 2
_JOBS_KEPT = 256
# Leases are asked for when half of them are gone, several at once, so that most jobs find nothing
# else going on. What arrives until new ones are there comes out of the other half.
_REFILL_WITHIN_S = 0.25
# A coordinator that grants some and refuses others has told how many it grants, for so long.
_CAP_FOR_S = 10.0
# One that grants none is asked again after so long, and then after twice as long.
_PAUSE_S = 1.0
_PAUSE_MAX_S = 60.0
# The way to the node, before the lease can be opened no more.
_OPEN_MARGIN_S = 5.0


@dataclass(frozen=True, slots=True)
class LeaseAhead:
    """A lease that waits for its job, and until when it can be opened and has to be over."""

    request: Signed[JobRequest]
    granted: Granted
    usable_until: float
    deadline_at: float

    @classmethod
    def taken(
        cls, request: Signed[JobRequest], granted: Granted, *, asked_at: float
    ) -> "LeaseAhead":
        """Both stamps of a lease are the coordinator's: only their differences count here."""
        lease = granted.lease.message
        open_s = (lease.open_before_ms - lease.issued_at_ms) / 1_000
        run_s = (lease.deadline_at_ms - lease.issued_at_ms) / 1_000
        return cls(request, granted, asked_at + open_s - _OPEN_MARGIN_S, asked_at + run_s)


class LeaseStock:
    """At most `most` leases, those under way included."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._leases: deque[LeaseAhead] = deque()
        self._arrivals: deque[float] = deque(maxlen=_JOBS_KEPT)
        self._asked_for = 0
        self._refusals = 0
        self._paused_until = -math.inf
        self._cap = most
        self._capped_until = -math.inf

    def __len__(self) -> int:
        return len(self._leases)

    @property
    def leases(self) -> tuple[LeaseAhead, ...]:
        return tuple(self._leases)

    @property
    def is_idle(self) -> bool:
        """Nothing is here or comes."""
        return not (self._leases or self._asked_for)

    def note_arrival(self, now: float) -> None:
        self._arrivals.append(now)

    def wanted(self, now: float) -> int:
        """By the jobs of the last seconds."""
        while self._arrivals and self._arrivals[0] < now - DEMAND_WITHIN_S:
            self._arrivals.popleft()
        if len(self._arrivals) < _JOBS_MIN:
            return 0
        span_s = max(now - self._arrivals[0], _REFILL_WITHIN_S)
        per_s = len(self._arrivals) / span_s
        most = self._cap if now < self._capped_until else self._most
        return min(2 * math.ceil(per_s * _REFILL_WITHIN_S), most)

    def missing(self, now: float) -> int:
        """How many to ask for now."""
        if now < self._paused_until:
            return 0
        wanted, there = self.wanted(now), len(self._leases) + self._asked_for
        return wanted - there if 2 * there <= wanted else 0

    def ask_for(self, count: int) -> None:
        self._asked_for += count

    def add(self, lease: LeaseAhead) -> None:
        """One that was asked for is here."""
        self._asked_for -= 1
        self._refusals = 0
        self._leases.append(lease)

    def note_refused(self, now: float) -> None:
        """One that was asked for does not come."""
        self._asked_for -= 1
        self._cap, self._capped_until = len(self._leases) + self._asked_for, now + _CAP_FOR_S
        if not self._cap and now >= self._paused_until:
            self._capped_until = -math.inf
            pause_s = min(_PAUSE_S * 2**self._refusals, _PAUSE_MAX_S)
            self._paused_until = now + pause_s
            self._refusals = min(self._refusals + 1, 10)

    def find(self, now: float, fits: Callable[[LeaseAhead], bool]) -> LeaseAhead | None:
        """The oldest that can be opened and fits; `remove` takes it out."""
        usable = (lease for lease in self._leases if now < lease.usable_until and fits(lease))
        return next(usable, None)

    def remove(self, lease: LeaseAhead) -> None:
        """Its caller opens the lease, or gives it back."""
        self._leases.remove(lease)

    def take_unwanted(self, now: float) -> list[LeaseAhead]:
        """Those that no job will get: too old, or more than demand calls for."""
        unwanted = [lease for lease in self._leases if lease.usable_until <= now]
        if not self.wanted(now):
            unwanted = list(self._leases)
        for lease in unwanted:
            self.remove(lease)
        return unwanted
