"""Scarce places, shared out among groups, so that one group cannot take them all.

Keys cost nothing, and neither do connections. Addresses cost more, so what a stranger can take is
counted by the block of addresses that it comes from. When no room is left, the largest group gives
up a place: a flood evicts itself, and a lone newcomer gets in.
"""

import heapq
import ipaddress
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

M = TypeVar("M", bound=Hashable)

# What one subscriber typically gets: a /24 of IPv4, a /56 of IPv6. Loopback is one block, too.
IPV4_BLOCK_BITS = 24
IPV6_BLOCK_BITS = 56

# Outdated entries of the heap are dropped when they outnumber the groups by this factor.
_HEAP_SLACK = 4


def block_of(host: str) -> str:
    """The address block of an IP address; other text (a host name, nothing) is its own block."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host.lower()
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    if address.is_loopback:
        return "loopback"
    bits = IPV4_BLOCK_BITS if address.version == 4 else IPV6_BLOCK_BITS
    return str(ipaddress.ip_network((address, bits), strict=False))


class _Group(Generic[M]):
    __slots__ = ("members", "size")

    def __init__(self) -> None:
        self.members: dict[M, int] = {}  # with their sizes, oldest first
        self.size = 0


class Shares(Generic[M]):
    """Members of groups, with a bound on the sum of their sizes.

    `rank` orders the members of a group: the lowest gives way first (the oldest, without a rank).
    `is_spare` says whether a member may be ended for a newcomer that has no better claim, because
    its group is as large: without it, such a newcomer is refused.
    """

    def __init__(
        self,
        size_max: int,
        *,
        rank: Callable[[M], float] | None = None,
        is_spare: Callable[[M], bool] = lambda _: False,
    ) -> None:
        self.size_max = size_max
        self._rank = rank
        self._is_spare = is_spare
        self._size = 0
        self._groups: dict[str, _Group[M]] = {}
        self._group_of: dict[M, str] = {}
        self._heap: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._group_of)

    def __contains__(self, member: M) -> bool:
        return member in self._group_of

    @property
    def size(self) -> int:
        return self._size

    @property
    def largest_size(self) -> int:
        return self.size_of(self._largest())

    def size_of(self, group: str) -> int:
        found = self._groups.get(group)
        return 0 if found is None else found.size

    def add(self, member: M, group: str, size: int = 1) -> None:
        """Take in a member for which `make_room` has made room, or that must be counted anyway."""
        self._group_of[member] = group
        self._groups.setdefault(group, _Group()).members[member] = 0
        self._change(group, member, size)

    def resize(self, member: M, size: int) -> None:
        """Unknown members are ignored, here and in `remove`."""
        group = self._group_of.get(member)
        if group is not None:
            self._change(group, member, size - self._groups[group].members[member])

    def remove(self, member: M) -> None:
        group = self._group_of.pop(member, None)
        if group is None:
            return
        self._change(group, member, -self._groups[group].members[member])
        del self._groups[group].members[member]
        if not self._groups[group].members:
            del self._groups[group]

    def make_room(self, group: str, size: int = 1) -> list[M] | None:
        """The members that must end so that `size` more of `group` fits; they are no members any
        more. None, and nothing changes, if the newcomer has to be refused."""
        ended: list[tuple[M, str, int]] = []
        while self._size + size > self.size_max:
            victim = self._victim(group, size)
            if victim is None:
                for member, its_group, its_size in reversed(ended):
                    self.add(member, its_group, its_size)
                return None
            its_group = self._group_of[victim]
            ended.append((victim, its_group, self._groups[its_group].members[victim]))
            self.remove(victim)
        return [member for member, _, _ in ended]

    def heaviest(self) -> M | None:
        """The member of the largest group that gives way first; None if there are no members."""
        found = self._groups.get(self._largest())
        return None if found is None else self._first(found)

    def _first(self, group: _Group[M]) -> M:
        if self._rank is None:
            return next(iter(group.members))
        return min(group.members, key=self._rank)

    def _victim(self, newcomer_group: str, size: int) -> M | None:
        own = self.size_of(newcomer_group)
        largest_group = self._largest()
        largest = self.size_of(largest_group)
        group = largest_group if largest > own else newcomer_group
        found = self._groups.get(group)
        if found is None:
            return None
        victim = self._first(found)
        has_claim = largest > own + size
        return victim if has_claim or self._is_spare(victim) else None

    def _largest(self) -> str:
        while self._heap:
            size, group = self._heap[0]
            if -size == self.size_of(group):
                return group
            heapq.heappop(self._heap)
        return ""

    def _change(self, group: str, member: M, by: int) -> None:
        found = self._groups[group]
        found.members[member] += by
        found.size += by
        self._size += by
        heapq.heappush(self._heap, (-found.size, group))
        if len(self._heap) > _HEAP_SLACK * len(self._groups) + 64:
            self._heap = [(-each.size, name) for name, each in self._groups.items()]
            heapq.heapify(self._heap)
