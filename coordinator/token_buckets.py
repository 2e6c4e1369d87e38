"""How often somebody may ask: a token bucket for each, full at first.

A bucket holds one minute's worth, so that a batch job may spend its minute at once. Buckets live in
this process: N of them let through up to N times the rate.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

# More at work at once than this, and the idlest is forgotten with what it has used.
BUCKETS_MAX = 10_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


@dataclass(frozen=True, slots=True)
class Level:
    """A bucket after somebody asked. `wait_s` is 0 if it was allowed, else how long until the next
    token; `full_in_s` is how long until all of them are back."""

    remaining: int
    wait_s: float
    full_in_s: float


class TokenBuckets:
    """`monotonic` is seconds on a clock that never goes back."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, name: str, per_minute: int) -> Level:
        """Take a token if there is one."""
        now = self._monotonic()
        capacity, per_s = float(per_minute), per_minute / 60
        bucket = self._buckets.get(name)
        if bucket is None:
            bucket = self._buckets[name] = _Bucket(capacity, now)
            if len(self._buckets) > BUCKETS_MAX:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(name)
        bucket.tokens = min(capacity, bucket.tokens + (now - bucket.filled_at) * per_s)
        bucket.filled_at = now
        wait_s = 0.0
        if bucket.tokens >= 1:
            bucket.tokens -= 1
        else:
            wait_s = (1 - bucket.tokens) / per_s
        return Level(int(bucket.tokens), wait_s, (capacity - bucket.tokens) / per_s)
