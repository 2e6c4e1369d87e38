"""The wall clock of one simulated machine: set wrong by a little, and sometimes by hours."""

from protocol.clock import Clock


class MachineClock:
    """A `protocol.clock.Clock`. `jump_ms` is by how much someone has set it wrong; a machine that
    starts asks a time server first."""

    def __init__(self, clock: Clock, *, ahead_ms: int = 0) -> None:
        self.jump_ms = 0
        self._clock = clock
        self._ahead_ms = ahead_ms

    def now_ms(self) -> int:
        return self._clock.now_ms() + self._ahead_ms + self.jump_ms
