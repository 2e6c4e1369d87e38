"""Places in flight and the bytes of their bodies, shared out between accounts.

The rule is the dynamic threshold of shared packet buffers: an account may hold at most `_ALPHA`
times what is free. One account alone gets three quarters, and several greedy ones leave room for
the next. An account at its limit loses its own idlest unfinished body, so that abandoned uploads do
not keep it from sending new requests; an account below its even share, when too little is free,
takes the place of the idlest unfinished body of the account that holds most, and the bytes of such
bodies while that account holds more than it.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from coordinator.gateway.errors import ApiError, error_of
from protocol.errors import Code

_ALPHA = 3

# Long enough for some requests to end, short enough to go unnoticed.
_RETRY_AFTER_MS = 1_000


@dataclass(slots=True)
class _Holding:
    """What one account has. `reading` are its places with unfinished bodies, the idlest first."""

    places: int = 0
    body_bytes: int = 0
    reading: "OrderedDict[Place, None]" = field(default_factory=OrderedDict)


class FairPlaces:
    """`places_max` requests and `bytes_max` bytes of bodies at once, over all accounts."""

    def __init__(self, *, places_max: int, bytes_max: int) -> None:
        self._places_max = places_max
        self._places_free = places_max
        self._bytes_free = bytes_max
        self._holdings: dict[str, _Holding] = {}

    def enter(self, account: str) -> "Place":
        """A place for one request; `leave` it. Raises ApiError (429)."""
        holding = self._holdings.get(account) or _Holding()
        if holding.places >= _ALPHA * self._places_free:
            self._make_room(holding)
        self._holdings[account] = holding
        holding.places += 1
        self._places_free -= 1
        return Place(self, account)

    def _make_room(self, holding: _Holding) -> None:
        """Evict one body that still arrives; its place is free soon. Raises ApiError (429)."""
        loser = holding
        accounts = len(self._holdings) + (holding.places == 0)
        if holding.places < self._places_max // accounts:
            reading = (other for other in self._holdings.values() if other.reading)
            loser = max(reading, key=lambda other: other.places, default=holding)
        if not loser.reading:
            raise _full("has more requests in flight than this account's share")
        next(iter(loser.reading)).evict()

    def grow(self, place: "Place", size: int) -> None:
        holding = self._holdings[place.account]
        while holding.body_bytes + size > _ALPHA * (self._bytes_free - size):
            self._make_room_for_bytes(holding, size)
        self._take(place, holding, size)

    def _make_room_for_bytes(self, holding: _Holding, size: int) -> None:
        """Evict one body that still arrives, of an account that holds more; its bytes count as free
        at once. Raises ApiError (429)."""
        reading = (other for other in self._holdings.values() if other.reading)
        loser = max(reading, key=lambda other: other.body_bytes, default=holding)
        if loser.body_bytes <= holding.body_bytes + size:
            raise _full("holds more bytes of request bodies than this account's share")
        next(iter(loser.reading)).evict()

    def shrink_to(self, place: "Place", size: int) -> None:
        if size < place.body_bytes:
            self._take(place, self._holdings[place.account], size - place.body_bytes)

    def note_progress(self, place: "Place") -> None:
        reading = self._holdings[place.account].reading
        reading[place] = None
        reading.move_to_end(place)

    def end_reading(self, place: "Place") -> None:
        self._holdings[place.account].reading.pop(place, None)

    def leave(self, place: "Place") -> None:
        holding = self._holdings[place.account]
        self._take(place, holding, -place.body_bytes)
        holding.reading.pop(place, None)
        holding.places -= 1
        self._places_free += 1
        if not holding.places:
            del self._holdings[place.account]

    def _take(self, place: "Place", holding: _Holding, size: int) -> None:
        place.body_bytes += size
        holding.body_bytes += size
        self._bytes_free -= size


class Place:
    """One request's place, and how many bytes of its body are held."""

    __slots__ = ("_evict", "_places", "account", "body_bytes")

    def __init__(self, places: FairPlaces, account: str) -> None:
        self.account = account
        self.body_bytes = 0
        self._places = places
        self._evict: Callable[[], None] = lambda: None

    def begin_reading(self, evict: Callable[[], None]) -> None:
        """The body begins to arrive; `evict` is called at most once, before `end_reading`."""
        self._evict = evict
        self._places.note_progress(self)

    def note_progress(self) -> None:
        self._places.note_progress(self)

    def end_reading(self) -> None:
        self._places.end_reading(self)

    def evict(self) -> None:
        """Give up the body that is being read, and its bytes."""
        self._places.end_reading(self)
        self._places.shrink_to(self, 0)
        self._evict()

    def grow(self, size: int) -> None:
        """So many more bytes are held. Raises ApiError (429)."""
        self._places.grow(self, size)

    def shrink_to(self, size: int) -> None:
        """The body is parsed: only so many bytes are kept."""
        self._places.shrink_to(self, size)

    def leave(self) -> None:
        self._places.leave(self)


def _full(why: str) -> ApiError:
    return error_of(Code.BUSY, "", retry_after_ms=_RETRY_AFTER_MS).but(
        message=f"the gateway {why}: try again shortly"
    )
