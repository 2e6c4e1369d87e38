"""Two processes with one key, as far as their control lines tell.

A node that restarts has a later incarnation, and its former one is not heard again. So if an
earlier one still speaks after the later one has begun, both run. Pure: time is an argument.
"""

from dataclasses import dataclass
from itertools import combinations

from protocol.ids import PeerId

# Two reports and a little: a process that is silent for longer has ended, or its line has.
HEARD_WITHIN_S = 12.0
# What a process had sent before it ended may be read after its successor's first word.
LAST_WORDS_S = 2.0
# More processes with one key are two, as far as it matters here.
INCARNATIONS_MAX = 4


@dataclass(slots=True)
class _Heard:
    first_at: float
    last_at: float


class Twins:
    """What was heard of which process of each attached node."""

    def __init__(self) -> None:
        # By node, then by incarnation.
        self._by_node: dict[PeerId, dict[int, _Heard]] = {}

    def hear(self, node: PeerId, incarnation_ms: int, *, now: float) -> None:
        heard = self._by_node.setdefault(node, {})
        seen = heard.get(incarnation_ms)
        if seen is not None:
            seen.last_at = now
            return
        if len(heard) >= INCARNATIONS_MAX:
            del heard[min(heard, key=lambda each: heard[each].last_at)]
        heard[incarnation_ms] = _Heard(now, now)

    def forget(self, node: PeerId) -> None:
        """It has no control line any more."""
        self._by_node.pop(node, None)

    def is_heard(self, node: PeerId, incarnation_ms: int, *, now: float) -> bool:
        """Whether this process of the node has spoken lately."""
        seen = self._by_node.get(node, {}).get(incarnation_ms)
        return seen is not None and now - seen.last_at <= HEARD_WITHIN_S

    def are_two(self, node: PeerId, *, now: float) -> bool:
        """Whether two processes of the node have spoken lately, the earlier one after the later
        one had begun."""
        alive = [
            seen
            for _, seen in sorted(self._by_node.get(node, {}).items(), key=lambda item: item[0])
            if now - seen.last_at <= HEARD_WITHIN_S
        ]
        return any(
            earlier.last_at > later.first_at + LAST_WORDS_S
            for earlier, later in combinations(alive, 2)
        )
