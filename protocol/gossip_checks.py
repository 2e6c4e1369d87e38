"""How much of what a neighbour passes on is checked at all. Pure: time is an argument.

Checking an offer is what a flood is after: reading one takes 0.9 ms with two models and 5 ms with
sixty. Nodes and coordinators share this budget, so that neither is the weaker one.
"""

from protocol.ids import PeerId
from protocol.limits import KIB
from protocol.token_buckets import Rate, TokenBuckets

# Of one neighbour, in KiB begun: 300 usual offers a second, or 18 of the largest, which take a
# quarter of a core at most.
CHECKS = Rate(per_s=300.0, burst=5_000)
_NEIGHBOURS_MAX = 4_096


class GossipChecks:
    """The budgets of all neighbours."""

    def __init__(self) -> None:
        self._buckets = TokenBuckets(keys_max=_NEIGHBOURS_MAX)

    def take(self, raw: bytes, via: PeerId, *, now_ms: int) -> bool:
        """Whether this message of the neighbour `via` may still be checked."""
        size_kib = -(-len(raw) // KIB)
        return not self._buckets.take(via, CHECKS, now_s=now_ms / 1_000, count=size_kib).wait_s
