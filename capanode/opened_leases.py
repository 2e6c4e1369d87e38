"""Which leases were opened here, to be told to the coordinators that granted them.

A coordinator gives the seat of a lease that was not opened back after a minute, and the money with
it. So every load report names the leases that were opened since the last report that was answered.
"""

from collections import deque
from collections.abc import Iterable

from protocol.ids import LeaseId, PeerId
from protocol.limits import OPENED_LEASES_MAX
from protocol.messages import Lease

# Of one coordinator, while it is away: the oldest have long been given up by then.
_UNTOLD_MAX = 16 * OPENED_LEASES_MAX


class OpenedLeases:
    """By coordinator, oldest first."""

    def __init__(self) -> None:
        self._untold: dict[PeerId, deque[LeaseId]] = {}

    def note(self, lease: Lease) -> None:
        """A lease of a coordinator that this node serves was opened."""
        self._untold.setdefault(lease.coordinator, deque(maxlen=_UNTOLD_MAX)).append(lease.lease_id)

    def untold(self, coordinator: PeerId) -> tuple[LeaseId, ...]:
        """As many as fit one report."""
        return tuple(self._untold.get(coordinator, ()))[:OPENED_LEASES_MAX]

    def told(self, coordinator: PeerId, leases: Iterable[LeaseId]) -> None:
        """The coordinator has answered a report that named these."""
        known = set(leases)
        left = [lease for lease in self._untold.pop(coordinator, ()) if lease not in known]
        if left:
            self._untold[coordinator] = deque(left, maxlen=_UNTOLD_MAX)
