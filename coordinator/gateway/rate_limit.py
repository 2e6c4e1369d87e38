"""Requests per minute and API key: a token bucket each.

A bucket holds one minute's worth, so that a batch job may spend its minute at once. Buckets live in
this process: N gateways let through up to N times the rate, which a limit per key may do.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from coordinator.gateway.errors import ApiError, error_of
from coordinator.gateway.responses import Headers, header
from protocol.errors import Code

# More keys than this at work at once, and the idlest forgets what it has used.
_BUCKETS_MAX = 10_000


@dataclass(slots=True)
class _Bucket:
    tokens: float
    filled_at: float


class RateLimits:
    """`monotonic` is seconds on a clock that never goes back."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()

    def take(self, key_id: str, requests_per_minute: int) -> Headers:
        """Count one request. Returns the headers that say what is left; raises ApiError (429)."""
        now = self._monotonic()
        capacity = float(requests_per_minute)
        per_s = capacity / 60
        bucket = self._buckets.get(key_id)
        if bucket is None:
            bucket = self._buckets[key_id] = _Bucket(capacity, now)
            if len(self._buckets) > _BUCKETS_MAX:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(key_id)
        bucket.tokens = min(capacity, bucket.tokens + (now - bucket.filled_at) * per_s)
        bucket.filled_at = now
        is_allowed = bucket.tokens >= 1
        if is_allowed:
            bucket.tokens -= 1
        headers = (
            header("x-ratelimit-limit-requests", requests_per_minute),
            header("x-ratelimit-remaining-requests", int(bucket.tokens)),
            header("x-ratelimit-reset-requests", _duration((capacity - bucket.tokens) / per_s)),
        )
        if not is_allowed:
            raise _too_many(requests_per_minute, (1 - bucket.tokens) / per_s, headers)
        return headers


def _too_many(requests_per_minute: int, wait_s: float, headers: Headers) -> ApiError:
    error = error_of(
        Code.RATE_LIMITED,
        f"this API key may send {requests_per_minute} requests per minute",
        retry_after_ms=max(1, round(1_000 * wait_s)),
    )
    error.headers = headers
    return error


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 12ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{round(1_000 * seconds)}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
