"""Places at relays, for a node that nothing can dial: taken when they are needed, given back when
a direct address works.
"""

from collections.abc import Callable, Sequence

import structlog

from protocol.ids import PeerId
from protocol.net.addresses import split_peer_id
from protocol.net.errors import NetError
from protocol.net.transport import Reservation, Transport

log = structlog.get_logger(__name__)

# One relay may restart while the other serves.
RELAYS_WANTED = 2


class RelayUse:
    """`relays` are addresses of relays, the preferred first; one address of each is used."""

    def __init__(
        self, transport: Transport, relays: Sequence[str], on_change: Callable[[], None]
    ) -> None:
        self._transport = transport
        by_peer: dict[PeerId, str] = {}
        for relay in relays:
            by_peer.setdefault(split_peer_id(relay)[1], relay)
        self._relays = tuple(by_peer.values())[:RELAYS_WANTED]
        self._on_change = on_change
        self._places: list[Reservation] = []

    @property
    def addresses(self) -> tuple[str, ...]:
        """Under which buyers reach us now."""
        return tuple(address for place in self._places for address in place.addresses)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why relays do not take us."""
        return tuple(f"{place.relay}: {place.failure}" for place in self._places if place.failure)

    def adjust(self, *, is_needed: bool) -> None:
        """Take places, or give them back. While the transport runs."""
        if not is_needed:
            for place in self._places:
                place.release()
            self._places.clear()
        elif not self._places:
            for relay in self._relays:
                self._take(relay)

    def _take(self, relay: str) -> None:
        try:
            self._places.append(self._transport.reserve(relay, self._on_change))
        except NetError as error:
            log.warning("relay_not_used", relay=relay, error=str(error))
