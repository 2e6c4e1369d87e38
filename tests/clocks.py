"""The clocks that tests move by hand. Virtual time in trio is `protocol.net.clock.VirtualClock`."""

from dataclasses import dataclass, field

from protocol.clock import Clock
from protocol.net.clock import VIRTUAL_EPOCH_MS, VirtualClock


@dataclass
class HandClock:
    """A wall clock and a monotonic one, both of which stand still until a test moves them.

    It is `protocol.clock.Clock`; as a function it is `time.monotonic`.
    """

    wall_ms: int = VIRTUAL_EPOCH_MS
    monotonic_s: float = 1_000.0
    sleeps_s: list[float] = field(default_factory=list)

    def now_ms(self) -> int:
        return self.wall_ms

    def __call__(self) -> float:
        return self.monotonic_s

    def monotonic_ns(self) -> int:
        return int(self.monotonic_s * 1e9)

    def pass_s(self, seconds: float) -> None:
        """Time passes for both."""
        self.monotonic_s += seconds
        self.wall_ms += round(1_000 * seconds)

    def sleep(self, seconds: float) -> None:
        """In place of `time.sleep`."""
        self.sleeps_s.append(seconds)
        self.pass_s(seconds)


@dataclass
class SkewedClock:
    """Another clock, and how far somebody has set it ahead."""

    inner: Clock
    ahead_ms: int = 0

    def now_ms(self) -> int:
        return self.inner.now_ms() + self.ahead_ms


class MovableClock(VirtualClock):
    """Virtual time that a test can let jump forward without waiting for it."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead_ms = 0

    def now_ms(self) -> int:
        return super().now_ms() + self.ahead_ms
