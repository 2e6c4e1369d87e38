"""Requests per minute and API key, as OpenAI's clients are told of them."""

from collections.abc import Callable

from coordinator.gateway.errors import ApiError, Headers, error_of
from coordinator.gateway.http.responses import header
from protocol.errors import Code
from protocol.token_buckets import Rate, TokenBuckets

# More keys at work at once than this, and the idlest is forgotten.
_KEYS_MAX = 10_000


class RateLimits:
    """`monotonic` is seconds on a clock that never goes back."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._buckets = TokenBuckets(keys_max=_KEYS_MAX)

    def take(self, key_id: str, requests_per_minute: int) -> Headers:
        """Count one request. Returns the headers that say what is left; raises ApiError (429)."""
        rate = Rate.per_minute(requests_per_minute)
        level = self._buckets.take(key_id, rate, now_s=self._monotonic())
        headers = (
            header("x-ratelimit-limit-requests", requests_per_minute),
            header("x-ratelimit-remaining-requests", level.remaining),
            header("x-ratelimit-reset-requests", _duration(level.full_in_s)),
        )
        if level.wait_s:
            raise _too_many(requests_per_minute, level.wait_s, headers)
        return headers


def _too_many(requests_per_minute: int, wait_s: float, headers: Headers) -> ApiError:
    return error_of(
        Code.RATE_LIMITED,
        f"this API key may send {requests_per_minute} requests per minute",
        retry_after_ms=max(1, round(1_000 * wait_s)),
    ).but(headers=headers)


def _duration(seconds: float) -> str:
    """As OpenAI writes it: 12ms, 1.5s, 6m0s."""
    if seconds < 1:
        return f"{round(1_000 * seconds)}ms"
    minutes, rest = divmod(round(seconds, 3), 60)
    return f"{minutes:.0f}m{rest:g}s" if minutes else f"{rest:g}s"
