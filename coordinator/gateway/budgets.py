"""Budgets of API keys, held strictly while their jobs run.

The database counts what was spent when receipts settle. Between a job's start and that moment its
cost is reserved here: the most it may cost before it is leased, its ceiling afterwards, and what it
was charged for a while after it ended, until the caller's cached figures have caught up.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from coordinator.gateway.callers import TTL_S

# A cached figure may be as old as the cache allows, and settling takes a moment before it.
_LINGER_S = 2 * TTL_S


@dataclass(eq=False, slots=True)
class Reservation:
    """A part of a key's budget. It only shrinks."""

    amount_nano: int

    def shrink(self, amount_nano: int) -> None:
        self.amount_nano = min(self.amount_nano, amount_nano)


@dataclass(slots=True)
class _Reserved:
    running: set[Reservation] = field(default_factory=set)
    ended: deque[tuple[float, Reservation]] = field(default_factory=deque)


class Budgets:
    """Of the keys that have one and run jobs now. `monotonic` is seconds that only grow."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._keys: dict[str, _Reserved] = {}

    def available_nano(self, key_id: str, remaining_nano: int) -> int:
        """What a new job may cost at most, of a budget that had so much left when it was read."""
        reserved = self._keys.get(key_id)
        if reserved is None:
            return remaining_nano
        now = self._monotonic()
        while reserved.ended and reserved.ended[0][0] <= now:
            reserved.ended.popleft()
        if not reserved.running and not reserved.ended:
            del self._keys[key_id]
        taken = sum(reservation.amount_nano for reservation in reserved.running)
        taken += sum(reservation.amount_nano for _, reservation in reserved.ended)
        return max(0, remaining_nano - taken)

    def reserve(self, key_id: str, amount_nano: int) -> Reservation:
        reservation = Reservation(amount_nano)
        self._keys.setdefault(key_id, _Reserved()).running.add(reservation)
        return reservation

    def end(self, key_id: str, reservation: Reservation) -> None:
        """The job is over; its reservation is what it was, or may yet be, charged."""
        reserved = self._keys[key_id]
        reserved.running.discard(reservation)
        reserved.ended.append((self._monotonic() + _LINGER_S, reservation))
