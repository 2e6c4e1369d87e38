"""Offers of nodes that we have not met: a small pool, counted in bytes of our memory.

Keys cost nothing, so one machine can offer as a million nodes, and the addresses in its offers are
its own invention. What it cannot invent is who hands the offers to us. So the pool is shared out
among the neighbours that handed offers on; the neighbour with the most gives up its oldest. A node
that attaches leaves the pool: its connection is counted elsewhere. When it detaches it is back.
"""

from collections.abc import Sequence

from protocol.envelope import Signed
from protocol.ids import PeerId
from protocol.limits import KIB, MIB
from protocol.net.shares import Shares, block_of
from protocol.offers import NodeOffer

# About 150 offers of the largest size, or 3,000 with two models.
UNPROVEN_BYTES_MAX = 32 * MIB

# Measured over 300 offers: 11 KB with two models, 191 KB with sixty. Each model has a row in two
# tables; the bytes are kept once, and decoded.
_NODE_COST_BYTES = 3 * KIB
_MODEL_COST_BYTES = 3 * KIB
_RAW_FACTOR = 2

# In a network of one process, each port is a machine; from here on, so many ports are one.
_MEMORY_MACHINES_FROM = 65_536
_MEMORY_PORTS = 256


def cost_of(signed: Signed[NodeOffer]) -> int:
    """Bytes of memory that a listed offer takes, about."""
    rows = len(signed.message.models) * _MODEL_COST_BYTES
    return _NODE_COST_BYTES + rows + _RAW_FACTOR * len(signed.raw)


def network_of(addresses: Sequence[str]) -> str:
    """The address block of the first multiaddr, or its host name as it stands.

    Behind a relay that is the relay's own block, so clients of one relay share a group.
    """
    parts = addresses[0].split("/") if addresses else []
    if len(parts) < 3:
        return ""
    if parts[1] == "memory" and parts[2].isdecimal() and int(parts[2]) >= _MEMORY_MACHINES_FROM:
        return f"memory/{int(parts[2]) // _MEMORY_PORTS}"
    block = block_of(parts[2])
    is_ip = parts[1] in ("ip4", "ip6")
    return "" if is_ip and block == parts[2].lower() else block


class UnprovenPool:
    """Who is in the pool, by the neighbour (or else the network) that they came from."""

    def __init__(self, bytes_max: int = UNPROVEN_BYTES_MAX) -> None:
        self._shares: Shares[PeerId] = Shares(bytes_max, is_spare=lambda _: True)

    def __contains__(self, node: PeerId) -> bool:
        return node in self._shares

    def admit(
        self, node: PeerId, group: str, cost: int, *, is_book_full: bool
    ) -> list[PeerId] | None:
        """Take the node in; returns who has to leave for it. None if the node is refused because
        its group has the most already, or because the book is full of nodes that we know."""
        shares = self._shares
        is_full = is_book_full or shares.size + cost > shares.size_max
        if is_full and shares.size_of(group) >= shares.largest_size:
            return None
        ended: list[PeerId] = []
        if is_book_full:
            oldest = shares.heaviest()
            if oldest is None:
                return None
            shares.remove(oldest)
            ended.append(oldest)
        return ended + self._take(node, group, cost)

    def take_back(self, node: PeerId, group: str, cost: int) -> list[PeerId]:
        """A node that we knew has left us. Returns who has to leave for it."""
        return [] if node in self._shares else self._take(node, group, cost)

    def resize(self, node: PeerId, cost: int) -> list[PeerId]:
        """Its offer takes another size now. Returns who has to leave; it may be the node itself."""
        self._shares.resize(node, cost)
        ended: list[PeerId] = []
        while self._shares.size > self._shares.size_max:
            oldest = self._shares.heaviest()
            if oldest is None:
                break
            self._shares.remove(oldest)
            ended.append(oldest)
        return ended

    def leave(self, node: PeerId) -> None:
        """It has attached, or is not listed any more."""
        self._shares.remove(node)

    def _take(self, node: PeerId, group: str, cost: int) -> list[PeerId]:
        ended = self._shares.make_room(group, cost)
        self._shares.add(node, group, cost)
        return ended or []
