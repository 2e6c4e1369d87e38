"""How long nodes took for their latest first outputs, beside what they claim of them: when one that
is silent is later than it usually is.

A mean does not say that. What is kept is the ratio of measured to claimed time, as prompts differ.
"""

import math
from collections import OrderedDict, deque

from protocol.ids import Digest, PeerId

# Of one model of one node. Fewer say little about one in twenty.
LATEST_MAX = 64
LATEST_MIN = 20
# The model of a node that is longest unheard of goes first; about a kilobyte each.
MODELS_MAX = 10_000
_SHARE = 0.95


class FirstOutputs:
    """By node and model."""

    def __init__(self) -> None:
        self._latest: OrderedDict[tuple[PeerId, Digest], deque[float]] = OrderedDict()

    def note(self, node: PeerId, model: Digest, ratio: float) -> None:
        """A first output took `ratio` times as long as its node claims."""
        latest = self._latest.setdefault((node, model), deque(maxlen=LATEST_MAX))
        self._latest.move_to_end((node, model))
        latest.append(ratio)
        if len(self._latest) > MODELS_MAX:
            self._latest.popitem(last=False)

    def usual_most(self, node: PeerId, model: Digest) -> float | None:
        """The ratio that 95 % of the latest did not exceed; None if there are too few."""
        latest = self._latest.get((node, model), ())
        if len(latest) < LATEST_MIN:
            return None
        return sorted(latest)[math.ceil(_SHARE * len(latest)) - 1]
