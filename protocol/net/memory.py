"""A whole network in one process, for tests and simulation.

It keeps the contract of `protocol.net.transport` and adds what a test wants to do to a network:
delay, loss, partitions, death. All chance comes from the random source that it is given and all
time from trio, so that under a virtual clock one seed replays a run. No threads, no sockets.
"""

import random
from collections import Counter
from collections.abc import Iterable
from itertools import count

from trio.lowlevel import ParkingLot

from protocol.ids import PeerId
from protocol.keys import SigningKey
from protocol.net.clock import VirtualClock
from protocol.net.errors import AddressInUse
from protocol.net.memory_transport import MemoryTransport
from protocol.net.memory_wire import Conditions
from protocol.net.relay_places import RelayLimits

__all__ = ["LIVENESS_S", "PERFECT", "Conditions", "MemoryNetwork", "MemoryTransport"]

# How long a silent peer is believed to be alive: what libp2p's pings come to.
LIVENESS_S = 8.0

PERFECT = Conditions()


class MemoryNetwork:
    """Connects the transports that it makes, and does to them what a test asks for."""

    def __init__(
        self,
        rng: random.Random,
        *,
        conditions: Conditions = PERFECT,
        liveness_s: float = LIVENESS_S,
    ) -> None:
        self.rng = rng
        self.liveness_s = liveness_s
        self.numbers = count(1)
        self.rearranged = ParkingLot()
        # What the network did to those who use it, by kind.
        self.counts: Counter[str] = Counter()
        # One clock for all, so that they agree about when a place at a relay expires.
        self.clock = VirtualClock()
        # Callers whose circuit stands, by the number that they sent through it.
        self.callers: dict[int, MemoryTransport] = {}
        self._default = conditions
        self._special: dict[tuple[PeerId, PeerId], Conditions] = {}
        self._listening: dict[int, MemoryTransport] = {}
        self._ports = count(1)
        self._home: dict[PeerId, int] = {}
        # Peer → the side of the partition that it is on; peers not named are together on side 0.
        self._sides: dict[PeerId, int] = {}
        # Where dials are neither answered nor refused.
        self._holes: set[int] = set()
        # From whom to whom nothing passes, whatever the partition.
        self._cuts: Counter[tuple[PeerId, PeerId]] = Counter()

    def transport(
        self,
        key: SigningKey,
        *,
        port: int | None = None,
        relay: RelayLimits | None = None,
        is_dialable: bool = True,
    ) -> "MemoryTransport":
        """A party on this network. One that comes back with the same key gets its old port, unless
        another process with that key is running there. With `relay` it is a relay for others; one
        that is not `is_dialable` is behind a router that lets no dial in."""
        if port is None:
            port = self._home.get(key.peer_id)
            if port is None or port in self._listening:
                port = next(self._ports)
        self._home.setdefault(key.peer_id, port)
        return MemoryTransport(self, key.peer_id, port, relay=relay, is_dialable=is_dialable)

    def set_conditions(self, a: PeerId, b: PeerId, conditions: Conditions) -> None:
        """From now on, between these two in both directions."""
        self._special[a, b] = self._special[b, a] = conditions
        for transport in self._listening.values():
            transport.refresh_conditions()

    def conditions(self, source: PeerId, target: PeerId, relay: PeerId | None = None) -> Conditions:
        """Of the way from one to the other, perhaps through a relay."""
        if relay is None:
            return self._special.get((source, target), self._default)
        return self.conditions(source, relay).followed_by(self.conditions(relay, target))

    def partition(self, *groups: Iterable[PeerId]) -> None:
        """Only parties of one group reach each other; those in no group form one of their own.

        Neither side is told: streams stall, and after `liveness_s` connections are given up.
        """
        self._sides = {peer: n for n, group in enumerate(groups, 1) for peer in group}
        self._rearrange()

    def cut(self, source: PeerId, target: PeerId) -> None:
        """Nothing from `source` reaches `target` any more; the other direction stays as it is.

        Cuts count: each is undone by one `mend`.
        """
        self._cuts[source, target] += 1
        self._rearrange()

    def mend(self, source: PeerId, target: PeerId) -> None:
        """Undo a `cut`. One that `heal` has undone already stays undone."""
        self._cuts[source, target] = max(0, self._cuts[source, target] - 1)
        self._rearrange()

    def heal(self) -> None:
        """All parties reach each other. Connections that survived go on where they stopped."""
        self._cuts.clear()
        self.partition()

    def is_silent(self, source: PeerId, target: PeerId, relay: PeerId | None = None) -> bool:
        """Whether what `source` sends, perhaps through a relay, does not reach `target`."""
        if relay is not None:
            return self.is_silent(source, relay) or self.is_silent(relay, target)
        are_apart = self._sides.get(source, 0) != self._sides.get(target, 0)
        return are_apart or self._cuts[source, target] > 0

    def swallow(self, port: int) -> None:
        """From now on dials to this port get no answer: a router drops what it does not know."""
        self._holes.add(port)

    def answer(self, port: int) -> None:
        """Undo a `swallow`: the port is forwarded."""
        self._holes.discard(port)
        self.rearranged.unpark_all()

    def kill(self, peer: PeerId) -> None:
        """As SIGKILL on the peer's process: connections break, nothing answers any more.

        The program itself is the caller's to cancel; its transport does nothing from now on.
        """
        for transport in list(self._listening.values()):
            if transport.peer_id == peer:
                transport.die()

    def _rearrange(self) -> None:
        for transport in self._listening.values():
            transport.refresh_silence()
        self.rearranged.unpark_all()

    # For transports.

    def swallows(self, port: int) -> bool:
        return port in self._holes

    def listen(self, port: int, transport: "MemoryTransport") -> None:
        if port in self._listening:
            raise AddressInUse(f"/memory/{port} is taken")
        self._listening[port] = transport

    def forget(self, port: int, transport: "MemoryTransport") -> None:
        if self._listening.get(port) is transport:
            del self._listening[port]

    def at(self, port: int) -> "MemoryTransport | None":
        return self._listening.get(port)
