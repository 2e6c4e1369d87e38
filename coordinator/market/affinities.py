"""Which node ran how an input begins: by its client's keyed hashes, for as many as fit.

The entry longest unused is forgotten first, so a client that makes keys up pushes out what has not
been used for as many leases.
"""

from collections import OrderedDict
from collections.abc import Sequence

from protocol.ids import PeerId

# About 20 MB. A conversation has one or two keys, and its cache at the node is gone sooner.
KEYS_MAX = 100_000

_Key = tuple[PeerId, bytes]


class Affinities:
    """Keys count together with their client: equal keys of two clients mean nothing."""

    def __init__(self, keys_max: int = KEYS_MAX) -> None:
        self._keys_max = keys_max
        self._nodes: OrderedDict[_Key, PeerId] = OrderedDict()

    def find(self, client: PeerId, keys: Sequence[bytes]) -> PeerId | None:
        """The node of the first key that is known."""
        return next(
            (self._nodes[client, key] for key in keys if (client, key) in self._nodes), None
        )

    def note(self, client: PeerId, keys: Sequence[bytes], node: PeerId) -> None:
        """An input that begins so was leased to this node."""
        for key in keys:
            self._nodes[client, key] = node
            self._nodes.move_to_end((client, key))
        while len(self._nodes) > self._keys_max:
            self._nodes.popitem(last=False)
