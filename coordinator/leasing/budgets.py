"""Budgets of API keys, held strictly while their jobs run.

The database counts what was spent when receipts settle, and a caller's figure of it may be some
seconds old. So what a key may still spend is that figure, less what its open leases may cost, less
what was paid on leases that have ended since.
"""

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from protocol.ids import LeaseId

# A caller's figure may be five seconds old, and reading it takes a moment before that.
LAG_S = 10.0


@dataclass(slots=True)
class _Taken:
    """Of one key: by leases that are open, and by those that have ended (until when it counts)."""

    held: dict[LeaseId, int] = field(default_factory=dict)
    paid: deque[tuple[float, int]] = field(default_factory=deque)


class Budgets:
    """Of the keys that have leases now, or had some lately. `monotonic` is seconds that only
    grow."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._keys: dict[str, _Taken] = {}

    def available_nano(self, key_id: str, remaining_nano: int) -> int:
        """What one more lease may cost, of a budget that had so much left when it was read."""
        taken = self._keys.get(key_id)
        if taken is None:
            return remaining_nano
        now = self._monotonic()
        while taken.paid and taken.paid[0][0] <= now:
            taken.paid.popleft()
        if not taken.held and not taken.paid:
            del self._keys[key_id]
        held_nano = sum(taken.held.values())
        return max(0, remaining_nano - held_nano - sum(paid_nano for _, paid_nano in taken.paid))

    def hold(self, key_id: str, lease_id: LeaseId, ceiling_nano: int) -> None:
        """A lease was granted: it may cost as much."""
        self._keys.setdefault(key_id, _Taken()).held[lease_id] = ceiling_nano

    def bound(self, key_id: str, lease_id: LeaseId, most_nano: int) -> None:
        """It is known that an open lease will cost no more than this."""
        held = self._keys[key_id].held
        held[lease_id] = min(held[lease_id], most_nano)

    def end(self, key_id: str, lease_id: LeaseId, paid_nano: int) -> None:
        taken = self._keys[key_id]
        del taken.held[lease_id]
        if paid_nano:
            taken.paid.append((self._monotonic() + LAG_S, paid_nano))
        elif not taken.held and not taken.paid:
            del self._keys[key_id]
