"""A budget that refills with time, for what a peer or a worker may make us do."""

from protocol.token_buckets import Rate


class Pace:
    """Takes costs as they come and says how long to pause before the next; never refuses.

    The sender of what we do not read yet waits at its full socket, as for any slow reader.
    """

    __slots__ = ("_counted_at_s", "_level", "_rate")

    def __init__(self, rate: Rate) -> None:
        self._rate = rate
        self._level = float(rate.burst)
        self._counted_at_s: float | None = None

    def pause_s(self, cost: int, now_s: float) -> float:
        """Take `cost` from the budget; 0 while it lasts."""
        if self._counted_at_s is not None:
            refilled = self._level + (now_s - self._counted_at_s) * self._rate.per_s
            self._level = min(float(self._rate.burst), refilled)
        self._counted_at_s = now_s
        self._level -= cost
        return max(0.0, -self._level / self._rate.per_s)
