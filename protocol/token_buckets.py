"""How often a party may do something: a token bucket for each, full at first. Pure: time is an
argument, of any clock that does not go back.

Buckets live in this process: N processes let through up to N times the rate.
"""

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """`burst` tokens at once, and `per_s` new ones a second."""

    per_s: float
    burst: int

    @classmethod
    def per_minute(cls, count: int) -> "Rate":
        """A whole minute's worth may be spent at once: a batch job does."""
        return cls(count / 60, count)


@dataclass(frozen=True, slots=True)
class Level:
    """A bucket after a party asked. `wait_s` is 0 if there was a token, else how long until the
    next one; `full_in_s` is how long until all of them are back."""

    remaining: int
    wait_s: float
    full_in_s: float


class TokenBuckets:
    """Of many keys; when there are more than `keys_max`, the one longest unused is forgotten with
    what it has used."""

    def __init__(self, *, keys_max: int) -> None:
        self._keys_max = keys_max
        # By key: how many tokens there were, and when.
        self._levels: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._levels)

    def has_any(self, key: Hashable, rate: Rate, *, now_s: float) -> bool:
        return self._tokens(key, rate, now_s) >= 1.0

    def take(self, key: Hashable, rate: Rate, *, now_s: float, count: int = 1) -> Level:
        """Take `count` tokens if there are as many."""
        tokens, wait_s = self._tokens(key, rate, now_s), 0.0
        if tokens >= count:
            tokens -= count
        else:
            wait_s = (count - tokens) / rate.per_s
        self._levels[key] = (tokens, now_s)
        self._levels.move_to_end(key)
        if len(self._levels) > self._keys_max:
            self._levels.popitem(last=False)
        return Level(int(tokens), wait_s, (rate.burst - tokens) / rate.per_s)

    def _tokens(self, key: Hashable, rate: Rate, now_s: float) -> float:
        tokens, at_s = self._levels.get(key, (float(rate.burst), now_s))
        return min(float(rate.burst), tokens + max(0.0, now_s - at_s) * rate.per_s)
