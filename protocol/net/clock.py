"""The two clocks: the machine's, and the one of a simulated world."""

import time

import trio

# 2026-01-01T00:00:00Z. Simulated worlds begin at the same instant, so that their ids and stamps
# are the same in every run of a seed.
VIRTUAL_EPOCH_MS = 1_767_225_600_000


class SystemClock:
    """Wall time. It may jump when the operator sets the clock: never measure durations with it."""

    def now_ms(self) -> int:
        return time.time_ns() // 1_000_000


class VirtualClock:
    """Time as trio sees it, which under `trio.testing.MockClock` is virtual.

    The first reading is the world's beginning: trio's clocks start at an arbitrary point.
    """

    def __init__(self, *, epoch_ms: int = VIRTUAL_EPOCH_MS) -> None:
        self._epoch_ms = epoch_ms
        self._origin_s: float | None = None

    def now_ms(self) -> int:
        now_s = trio.current_time()
        if self._origin_s is None:
            self._origin_s = now_s
        # Rounded, not cut off: after sleeping 0.1 s ten times the clock shall say 1000, not 999.
        return self._epoch_ms + round((now_s - self._origin_s) * 1000)
