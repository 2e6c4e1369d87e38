"""How much one report about a node counts: by who pays, and by how much they have said already.

A record is worth what it costs to forge. A job that costs nothing, and a job that a node buys from
itself, count for nothing. The first paid job of a client counts as one, its second one as a half,
its third as a third: a hundred jobs of one client weigh as much as five clients with one job each.
"""

import math
from collections import OrderedDict

from protocol.ids import PeerId

# As long as reputation itself remembers an event well.
HALF_LIFE_MS = 600_000
# Pairs of node and client that are remembered; about 30 MB at most.
PAIRS_MAX = 200_000


class Voices:
    """Reports lately heard of each node from each client."""

    def __init__(self, *, pairs_max: int = PAIRS_MAX) -> None:
        self._pairs_max = pairs_max
        # The faded count and its time; the pair longest unheard of first.
        self._heard: OrderedDict[tuple[PeerId, PeerId], tuple[float, int]] = OrderedDict()

    def weigh(self, node: PeerId, client: PeerId, *, at_stake_nano: int, now_ms: int) -> float:
        """What one more report counts, from 0 to 1. `at_stake_nano` is what its job costs."""
        if client == node or at_stake_nano <= 0:
            return 0.0
        count, heard_at_ms = self._heard.pop((node, client), (0.0, now_ms))
        count *= math.exp2(-max(now_ms - heard_at_ms, 0) / HALF_LIFE_MS)
        self._heard[(node, client)] = (count + 1.0, now_ms)
        if len(self._heard) > self._pairs_max:
            self._heard.popitem(last=False)
        return 1.0 / (1.0 + count)
