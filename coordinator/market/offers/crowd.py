"""Who makes room when the book is full.

Keys cost nothing, so one machine can offer as a million nodes. Addresses cost more: nodes that we
have not reached yet are grouped by the network that they claim to be in, and the largest group
gives up its oldest member. A flood so evicts itself, and a lone honest newcomer always gets in.
"""

import ipaddress
from collections import OrderedDict
from collections.abc import Sequence

from protocol.ids import PeerId

# What one subscriber typically gets: a /24 of IPv4, a /48 of IPv6.
_IPV4_PREFIX = 24
_IPV6_PREFIX = 48
# In a network of one process, each port is a machine; from here on, so many ports are one.
_MEMORY_MACHINES_FROM = 65_536
_MEMORY_PORTS = 256


def network_of(addresses: Sequence[str]) -> str:
    """The network of the first multiaddr: an IP prefix, or a host name as it stands.

    Behind a relay that is the relay's own network, so clients of one relay share a group.
    """
    parts = addresses[0].split("/") if addresses else []
    if len(parts) < 3:
        return ""
    kind, host = parts[1], parts[2]
    if kind == "memory" and host.isdecimal() and int(host) >= _MEMORY_MACHINES_FROM:
        return f"memory/{int(host) // _MEMORY_PORTS}"
    prefix = {"ip4": _IPV4_PREFIX, "ip6": _IPV6_PREFIX}.get(kind)
    if prefix is None:
        return host.lower()
    try:
        return str(ipaddress.ip_network(f"{host}/{prefix}", strict=False))
    except ValueError:
        return ""


class Crowd:
    """Members in groups, with the largest group at hand; every operation is O(1) amortized."""

    def __init__(self) -> None:
        self._members: dict[str, OrderedDict[PeerId, None]] = {}
        self._groups_of_size: dict[int, OrderedDict[str, None]] = {}
        self._largest = 0

    def add(self, node: PeerId, group: str) -> None:
        members = self._members.setdefault(group, OrderedDict())
        members[node] = None
        self._move(group, len(members) - 1, len(members))

    def remove(self, node: PeerId, group: str) -> None:
        """Forget the node; unknown ones are ignored."""
        members = self._members.get(group)
        if members is None or node not in members:
            return
        del members[node]
        self._move(group, len(members) + 1, len(members))
        if not members:
            del self._members[group]

    def victim(self, newcomer_group: str) -> PeerId | None:
        """The oldest member of the largest group; None if the newcomer's own is the largest."""
        own_size = len(self._members.get(newcomer_group, ()))
        if self._largest <= own_size:
            return None
        group = next(iter(self._groups_of_size[self._largest]))
        return next(iter(self._members[group]))

    def _move(self, group: str, old_size: int, new_size: int) -> None:
        old_peers = self._groups_of_size.get(old_size)
        if old_peers is not None:
            old_peers.pop(group, None)
            if not old_peers:
                del self._groups_of_size[old_size]
        if new_size:
            self._groups_of_size.setdefault(new_size, OrderedDict())[group] = None
        # Sizes change by one, so the largest is either the new size or the one just left.
        if new_size > self._largest or (
            old_size == self._largest and old_size not in self._groups_of_size
        ):
            self._largest = new_size
