"""Which leases were opened here, to be told to the coordinators that granted them.

A coordinator gives the seat of a lease that was not opened back after a minute, and the money with
it. So every load report names the leases that were opened since the last report that was answered,
and those whose payloads still arrive: an upload keeps no other client from a seat.
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
        self._arriving: dict[LeaseId, PeerId] = {}

    def note(self, lease: Lease) -> None:
        """A lease of a coordinator that this node serves was opened."""
        self._untold.setdefault(lease.coordinator, deque(maxlen=_UNTOLD_MAX)).append(lease.lease_id)

    def untold(self, coordinator: PeerId) -> tuple[LeaseId, ...]:
        """As many as fit one report."""
        return tuple(self._untold.get(coordinator, ()))[:OPENED_LEASES_MAX]

    def note_arriving(self, lease: Lease) -> None:
        """Its payload did not come whole with it."""
        self._arriving[lease.lease_id] = lease.coordinator

    def note_arrived(self, lease_id: LeaseId) -> None:
        """The payload is whole, or comes no more."""
        self._arriving.pop(lease_id, None)

    def arriving(self, coordinator: PeerId) -> tuple[LeaseId, ...]:
        """As many as fit one report, the oldest first."""
        its = [lease for lease, granted_by in self._arriving.items() if granted_by == coordinator]
        return tuple(its[:OPENED_LEASES_MAX])

    def told(self, coordinator: PeerId, leases: Iterable[LeaseId]) -> None:
        """The coordinator has answered a report that named these."""
        known = set(leases)
        left = [lease for lease in self._untold.pop(coordinator, ()) if lease not in known]
        if left:
            self._untold[coordinator] = deque(left, maxlen=_UNTOLD_MAX)
