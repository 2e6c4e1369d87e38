"""How fast real jobs run at one model, and whether that contradicts what was measured."""

from collections import deque
from statistics import median

from capanode.measurements import Speed

# So many seconds of work before anything is concluded, and so many are looked at.
SAMPLES_MIN = 20
SAMPLES_MAX = 60
# Real jobs differ from the benchmark's: prompts are longer, clients sign late. Beyond these factors
# it was the measurement.
FASTER_BY = 1.3
SLOWER_BY = 0.5


class ObservedSpeed:
    """Tokens in each second in which one job ran alone, and in the busiest ones."""

    def __init__(self) -> None:
        self._alone: deque[float] = deque(maxlen=SAMPLES_MAX)
        self._together: deque[float] = deque(maxlen=SAMPLES_MAX)

    def note(self, tokens_per_s: float, *, running: int) -> None:
        """A second in which so many jobs ran from its beginning to its end."""
        if tokens_per_s > 0 and running:
            (self._alone if running == 1 else self._together).append(tokens_per_s)

    def contradicts(self, speed: Speed) -> bool:
        """Jobs alone are typical; jobs together may be few, so only more than claimed counts."""
        if len(self._alone) >= SAMPLES_MIN:
            typical = median(self._alone)
            if not SLOWER_BY * speed.decode_tps <= typical <= FASTER_BY * speed.decode_tps:
                return True
        return len(self._together) >= SAMPLES_MIN and (
            median(self._together) > FASTER_BY * speed.batched_tps
        )

    def clear(self) -> None:
        self._alone.clear()
        self._together.clear()
