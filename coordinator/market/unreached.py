"""Nodes that buyers could not dial.

What a buyer says removes no node: it makes us dial the node ourselves, and only what that shows
counts. A buyer that lies costs us a dial now and then.
"""

from collections import OrderedDict

from protocol.ids import PeerId

# Old enough to be another network's weather.
TOLD_FOR_MS = 10 * 60_000
# One dial of ours answers for all buyers that complain meanwhile.
LOOK_EVERY_MS = 10_000
NODES_MAX = 10_000
# Whether it is seven buyers or seventy makes no difference to the node.
BUYERS_MAX = 64


class Unreached:
    """Who could not dial which node lately, and which nodes we should dial for that."""

    def __init__(self) -> None:
        self._told: OrderedDict[PeerId, OrderedDict[PeerId, int]] = OrderedDict()
        self._due: dict[PeerId, None] = {}
        self._looked_at_ms: OrderedDict[PeerId, int] = OrderedDict()

    def note(self, node: PeerId, buyer: PeerId, *, now_ms: int) -> None:
        """A buyer with a lease, and so with money, could not dial the node."""
        if buyer == node:
            return
        told = self._told.setdefault(node, OrderedDict())
        self._told.move_to_end(node)
        told[buyer] = now_ms
        told.move_to_end(buyer)
        if len(told) > BUYERS_MAX:
            told.popitem(last=False)
        if len(self._told) > NODES_MAX:
            self._told.popitem(last=False)
        if len(self._due) < NODES_MAX:
            self._due[node] = None

    def buyers(self, node: PeerId, *, now_ms: int) -> int:
        """How many different buyers said so lately."""
        told = self._told.get(node)
        return sum(now_ms - at_ms < TOLD_FOR_MS for at_ms in told.values()) if told else 0

    def take_due(self, now_ms: int) -> list[PeerId]:
        """The nodes to dial now; each again no sooner than LOOK_EVERY_MS."""
        due = [
            node
            for node in self._due
            if now_ms - self._looked_at_ms.get(node, -LOOK_EVERY_MS) >= LOOK_EVERY_MS
        ]
        for node in due:
            del self._due[node]
            self._looked_at_ms[node] = now_ms
            self._looked_at_ms.move_to_end(node)
        while len(self._looked_at_ms) > NODES_MAX:
            self._looked_at_ms.popitem(last=False)
        return due
