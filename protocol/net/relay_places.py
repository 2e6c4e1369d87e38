"""Who holds a place at this relay, and what runs through it: the books, without any I/O.

Limits count what is created here (places, circuits), and both are shared out among address blocks:
when there is no room, the block that has the most gives up one.
"""

from dataclasses import dataclass

from protocol.ids import PeerId
from protocol.limits import MIB
from protocol.net.circuit_messages import CircuitLimit
from protocol.net.shares import Shares
from protocol.net.transport import Origin


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """How much a relay gives."""

    # A place costs a dictionary's entry, and its holder's connection, which has limits of its own.
    reservations_max: int = 1024
    # Well-behaved holders renew long before; one that is gone is forgotten with its connection.
    reservation_s: int = 3600
    # Each carries two streams, and may keep two flow-control windows full.
    circuits_max: int = 512
    # Buyers of one node at a time, and nodes that one buyer uses.
    circuits_per_peer_max: int = 48
    # A circuit carries all jobs of one buyer at one node; those that it cuts go on through another.
    circuit_s: int = 3600
    # In each direction: about thirty payloads of the largest size.
    circuit_bytes_max: int = 256 * MIB

    @property
    def of_circuit(self) -> CircuitLimit:
        return CircuitLimit(self.circuit_s, self.circuit_bytes_max)


@dataclass(frozen=True, eq=False, slots=True)
class Circuit:
    """One that stands, or is being made."""

    source: PeerId
    target: PeerId


class RelayPlaces:
    """Places and circuits of one relay. Times are in seconds, of any clock that does not jump."""

    def __init__(self, limits: RelayLimits) -> None:
        self._limits = limits
        self._expiry: dict[PeerId, float] = {}
        self._holders: Shares[PeerId] = Shares(limits.reservations_max)
        self._circuits: Shares[Circuit] = Shares(limits.circuits_max)
        self._circuits_of: dict[PeerId, int] = {}

    @property
    def reservations(self) -> int:
        return len(self._holders)

    @property
    def circuits(self) -> int:
        return len(self._circuits)

    def reserve(self, peer: PeerId, origin: Origin, *, now_s: float) -> bool:
        """Give a place to a peer, or renew the one that it has. False if there is none for it."""
        if peer not in self._holders:
            self._forget_expired(now_s)
            ended = self._holders.make_room(origin.block)
            if ended is None:
                return False
            for each in ended:
                self._expiry.pop(each, None)
            self._holders.add(peer, origin.block)
        self._expiry[peer] = now_s + self._limits.reservation_s
        return True

    def forget(self, peer: PeerId) -> None:
        """The peer is not connected any more."""
        self._expiry.pop(peer, None)
        self._holders.remove(peer)

    def is_reserved(self, peer: PeerId, *, now_s: float) -> bool:
        return self._expiry.get(peer, now_s) > now_s

    def open(self, source: PeerId, target: PeerId, origin: Origin) -> tuple[Circuit, list[Circuit]]:
        """A circuit, and those that must end for it. Raises PlacesTaken."""
        most = max(self._circuits_of.get(peer, 0) for peer in (source, target))
        if most >= self._limits.circuits_per_peer_max:
            raise PlacesTaken
        ended = self._circuits.make_room(origin.block)
        if ended is None:
            raise PlacesTaken
        circuit = Circuit(source, target)
        self._circuits.add(circuit, origin.block)
        for peer in (source, target):
            self._circuits_of[peer] = self._circuits_of.get(peer, 0) + 1
        return circuit, ended

    def close(self, circuit: Circuit) -> None:
        """It is over, whether it kept its place or not."""
        self._circuits.remove(circuit)
        for peer in (circuit.source, circuit.target):
            self._circuits_of[peer] -= 1
            if not self._circuits_of[peer]:
                del self._circuits_of[peer]

    def _forget_expired(self, now_s: float) -> None:
        for peer in [peer for peer, expiry in self._expiry.items() if expiry <= now_s]:
            self.forget(peer)


class PlacesTaken(Exception):
    """There is no room for another circuit of these peers, or none for their address block."""
