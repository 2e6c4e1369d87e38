"""Time and randomness as arguments, so that one seed can replay a whole network.

Only the interfaces live here; the real and the virtual clock are in `protocol.net.clock`.
"""

from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Wall time for stamps that other parties read. Waits use trio's own monotonic clock."""

    def now_ms(self) -> int:
        """Milliseconds since 1970-01-01 UTC."""
        ...


# That many unpredictable bytes: os.urandom, or random.Random(seed).randbytes in a simulation.
Entropy = Callable[[int], bytes]
