"""Which relays a party behind a router keeps places at: a few that work, of those that it knows."""

from collections.abc import Callable, Sequence

import structlog

from protocol.ids import PeerId
from protocol.net.addresses import split_peer_id
from protocol.net.errors import NetError
from protocol.net.transport import Reservation, Transport

log = structlog.get_logger(__name__)

# One may go away at any time, and buyers have to find us meanwhile.
RELAYS_WANTED = 2


class RelayRoster:
    """Keeps places at two relays of `candidates`, addresses in order of preference, one of each
    relay. Where a relay fails, the next one is asked as well, until the first is back.

    `on_change` is called when a place was won or lost.
    """

    def __init__(
        self, transport: Transport, candidates: Sequence[str], on_change: Callable[[], None]
    ) -> None:
        self._transport = transport
        by_relay: dict[PeerId, str] = {}
        for address in candidates:
            by_relay.setdefault(split_peer_id(address)[1], address)
        self._candidates = tuple(by_relay.values())
        self._on_change = on_change
        self._is_needed = False
        self._places: dict[str, Reservation] = {}

    @property
    def addresses(self) -> tuple[str, ...]:
        """Under which others reach us now."""
        return tuple(address for place in self._places.values() for address in place.addresses)

    @property
    def failures(self) -> tuple[str, ...]:
        """Why relays do not take us."""
        return tuple(f"{each.relay}: {each.failure}" for each in self.places if each.failure)

    @property
    def places(self) -> tuple[Reservation, ...]:
        """Those that are held, and those that failed, with the reason."""
        return tuple(self._places.values())

    def adjust(self, *, is_needed: bool) -> None:
        """Take places, or give them back. While the transport runs."""
        self._is_needed = is_needed
        if is_needed:
            self._rearrange()
        else:
            places, self._places = self._places, {}
            for place in places.values():
                place.release()

    def _on_place(self) -> None:
        """A place was won or lost."""
        if self._is_needed:
            self._rearrange()
        self._on_change()

    def _rearrange(self) -> None:
        """Ask more relays, or fewer."""
        useful = [address for address, place in self._places.items() if not place.failure]
        for address in self._candidates:
            if len(useful) >= RELAYS_WANTED:
                break
            if address not in self._places:
                try:
                    place = self._transport.reserve(address, self._on_place)
                except NetError as error:
                    log.warning("relay_not_used", relay=address, error=str(error))
                    continue
                self._places[address] = place
                useful.append(address)
        held = [address for address in self._candidates if self._is_held(address)]
        for address in held[RELAYS_WANTED:]:
            self._places.pop(address).release()

    def _is_held(self, address: str) -> bool:
        place = self._places.get(address)
        return place is not None and bool(place.addresses)
