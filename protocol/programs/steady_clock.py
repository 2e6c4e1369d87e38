"""Wall time that does not jump: what money depends on must not move with a clock that is set.

A step of the wall clock (an operator, a time server, a restored machine) says nothing about how
much time has passed. So this clock starts at the wall's time, advances by a monotonic clock, and
turns towards the wall by at most a tenth of the time that passes.
"""

from collections.abc import Callable

import structlog

from protocol.clock import Clock

log = structlog.get_logger(__name__)

# An hour's step takes ten hours to follow; a restart takes the wall's time at once.
SLEW = 0.1
# Below this the two clocks only differ by rounding and by when they are read.
AGREE_WITHIN_MS = 2.0
# Time servers correct less than this by slewing; a larger difference is a step, and is logged.
STEP_MS = 1_000.0


class SteadyClock:
    """A `protocol.clock.Clock` over another. `monotonic_s` is seconds that only grow."""

    def __init__(self, wall: Clock, monotonic_s: Callable[[], float]) -> None:
        self._wall = wall
        self._monotonic_s = monotonic_s
        # Set by the first reading: a virtual clock may not be readable before.
        self._read_at_s: float | None = None
        self._steady_ms = 0.0
        # By how much the wall was ahead when it was last read.
        self._ahead_ms = 0.0

    def now_ms(self) -> int:
        wall_ms, now_s = self._wall.now_ms(), self._monotonic_s()
        if self._read_at_s is None:
            self._steady_ms, self._read_at_s = float(wall_ms), now_s
            return wall_ms
        elapsed_ms = 1_000 * (now_s - self._read_at_s)
        self._read_at_s = now_s
        before_ms = self._steady_ms
        self._steady_ms += elapsed_ms
        ahead_ms = wall_ms - self._steady_ms
        if abs(ahead_ms - self._ahead_ms) > STEP_MS:
            log.warning(
                "clock_jumped",
                by_ms=round(ahead_ms - self._ahead_ms),
                wall_is_ahead_ms=round(ahead_ms),
                hint="restart the program to take the new time at once",
            )
        if abs(ahead_ms) <= AGREE_WITHIN_MS:
            # The wall's own milliseconds, so that parties on one clock see the same numbers.
            self._steady_ms = max(before_ms, float(wall_ms))
        else:
            limit_ms = SLEW * elapsed_ms
            self._steady_ms += max(-limit_ms, min(limit_ms, ahead_ms))
        self._ahead_ms = wall_ms - self._steady_ms
        return int(self._steady_ms)
