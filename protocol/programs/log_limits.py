"""Lines that strangers cause: few of each kind, whatever they send.

A frame of ten bytes may be worth a line of two hundred, and a thousand frames a second would fill a
disk in days and hide what matters. What is left out is counted in the next line of its kind.
"""

from collections import Counter
from collections.abc import Callable, MutableMapping
from typing import Any

import structlog

from protocol.token_buckets import Rate, TokenBuckets

# What bytes of a peer without money or lease make us log.
STRANGERS_EVENTS = frozenset(
    {
        "channel_overflow",
        "conversation_failed",
        "dial_forbidden",
        "handler_crashed",
        "job_turned_away",
        "link_refused",
        "validator_crashed",
    }
)
# Of each kind.
LINES = Rate(per_s=5.0, burst=100)

_Event = MutableMapping[str, Any]


class StrangersLines:
    """A processor of structlog. `monotonic` is seconds on a clock that never goes back."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._buckets = TokenBuckets(keys_max=len(STRANGERS_EVENTS))
        self._left_out: Counter[str] = Counter()

    def __call__(self, _logger: Any, _method: str, event: _Event) -> _Event:
        name = event.get("event")
        if name not in STRANGERS_EVENTS:
            return event
        if self._buckets.take(name, LINES, now_s=self._monotonic()).wait_s:
            self._left_out[name] += 1
            raise structlog.DropEvent
        left_out = self._left_out.pop(name, 0)
        if left_out:
            event["left_out"] = left_out
        return event
