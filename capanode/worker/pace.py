"""A budget that refills with time, for what a worker may make the node do."""


class Pace:
    """Takes costs as they come and says how long to pause before the next; never refuses.

    A worker that says more than the node wants to read waits at its full socket, as for any slow
    reader.
    """

    def __init__(self, *, per_s: float, burst: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._level = burst
        self._counted_at_s: float | None = None

    def pause_s(self, cost: float, now_s: float) -> float:
        """Take `cost` from the budget; 0 while it lasts."""
        if self._counted_at_s is not None:
            refilled = self._level + (now_s - self._counted_at_s) * self._per_s
            self._level = min(self._burst, refilled)
        self._counted_at_s = now_s
        self._level -= cost
        return max(0.0, -self._level / self._per_s)
