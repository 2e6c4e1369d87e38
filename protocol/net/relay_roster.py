"""Which relays a party behind a router keeps places at: a few that work, of those that it knows."""

from collections.abc import Callable, Sequence

import structlog
import trio

from protocol.net.errors import NetError
from protocol.net.transport import Reservation, Transport

log = structlog.get_logger(__name__)

# One may go away at any time, and buyers have to find us meanwhile.
RELAYS_WANTED = 2


class RelayRoster:
    """Keeps `wanted` places at relays of `candidates`, addresses in order of preference, while it
    runs. Where a relay fails, the next one is asked as well, until the first is back.

    `on_change` is called when a place was won or lost.
    """

    def __init__(
        self,
        transport: Transport,
        candidates: Sequence[str],
        *,
        on_change: Callable[[], None],
        wanted: int = RELAYS_WANTED,
    ) -> None:
        self._transport = transport
        self._candidates = tuple(dict.fromkeys(candidates))
        self._wanted = wanted
        self._on_change = on_change
        self._places: dict[str, Reservation] = {}
        self._is_running = False

    @property
    def places(self) -> tuple[Reservation, ...]:
        """Those that are held, and those that failed, with the reason."""
        return tuple(self._places.values())

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled; then the places are released."""
        self._is_running = True
        try:
            self._rearrange()
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._is_running = False
            places, self._places = self._places, {}
            for place in places.values():
                place.release()

    def _on_place(self) -> None:
        """A place was won or lost."""
        if self._is_running:
            self._rearrange()
            self._on_change()

    def _rearrange(self) -> None:
        """Ask more relays, or fewer."""
        useful = [address for address, place in self._places.items() if not place.failure]
        for address in self._candidates:
            if len(useful) >= self._wanted:
                break
            if address not in self._places:
                try:
                    place = self._transport.reserve(address, self._on_place)
                except NetError as error:
                    log.warning("relay_unusable", address=address, error=str(error))
                    continue
                self._places[address] = place
                useful.append(address)
        held = [address for address in self._candidates if self._is_held(address)]
        for address in held[self._wanted :]:
            self._places.pop(address).release()

    def _is_held(self, address: str) -> bool:
        place = self._places.get(address)
        return place is not None and bool(place.addresses)
