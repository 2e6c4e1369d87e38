"""A transport's part in circuits that is the same whatever carries its bytes: being a relay, having
places at others, and what it tells of them. How a circuit becomes a connection is its own affair.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import trio

from protocol.clock import Clock
from protocol.ids import PeerId
from protocol.net.circuit_messages import HOP_PROTOCOL, STOP_PROTOCOL
from protocol.net.circuits import CallTaker, CircuitCall
from protocol.net.relay import Relay
from protocol.net.relay_places import RelayLimits
from protocol.net.reservations import KeptReservation, Reservations
from protocol.net.transport import Transport


class TransportCircuits(ABC):
    """The circuits of one transport; with `limits` it is a relay."""

    def __init__(self, owner: Transport, limits: RelayLimits | None, clock: Clock) -> None:
        self._relay: Relay | None = None
        self._places = Reservations(owner, clock, read_address=self._read_address)
        taker = CallTaker(self._places.holds_place_at, self._serve_call)
        owner.handle(STOP_PROTOCOL, taker.handle_stop)
        if limits is not None:
            self._relay = Relay(owner, limits, clock, addresses=self._own_addresses)
            owner.handle(HOP_PROTOCOL, self._relay.handle_hop)

    @property
    def addresses(self) -> tuple[str, ...]:
        """Those that lead to us through relays."""
        return self._places.addresses

    def keep(
        self, relay_address: str, on_change: Callable[[], None], nursery: trio.Nursery
    ) -> KeptReservation:
        return self._places.keep(relay_address, on_change, nursery)

    def forget(self, peer: PeerId) -> None:
        """No connection to a peer is left."""
        if self._relay is not None:
            self._relay.forget(peer)

    def statistics(self) -> dict[str, int]:
        return {} if self._relay is None else self._relay.statistics()

    @abstractmethod
    async def _serve_call(self, call: CircuitCall, prove: Callable[[], None]) -> None:
        """A peer calls; see `CallTaker`."""

    @abstractmethod
    def _own_addresses(self) -> list[bytes]:
        """Where this relay can be dialled, as its messages say it."""

    @abstractmethod
    def _read_address(self, data: bytes) -> str | None:
        """The text of a relay's address, if we would tell it to others."""
