"""What a node tells coordinators of the leases that were opened at it."""

from dataclasses import replace

from capanode.opened_leases import OpenedLeases
from protocol.ids import LeaseId, PeerId, derive_ulid
from protocol.limits import OPENED_LEASES_MAX
from protocol.messages import Lease
from tests.protocol.makers import COORDINATOR, make_chain

LEASE = make_chain().lease.message


def numbered(number: int, coordinator: PeerId = COORDINATOR.peer_id) -> Lease:
    lease_id = LeaseId(derive_ulid(LEASE.lease_id, str(number)))
    return replace(LEASE, lease_id=lease_id, coordinator=coordinator)


def test_a_lease_is_told_until_a_report_with_it_was_answered() -> None:
    opened = OpenedLeases()
    opened.note(numbered(1))
    first = opened.untold(COORDINATOR.peer_id)
    opened.note(numbered(2))
    assert first == (numbered(1).lease_id,)
    assert len(opened.untold(COORDINATOR.peer_id)) == 2
    opened.told(COORDINATOR.peer_id, first)
    assert opened.untold(COORDINATOR.peer_id) == (numbered(2).lease_id,)


def test_a_coordinator_is_told_of_its_own_leases_only() -> None:
    opened = OpenedLeases()
    opened.note(numbered(1, PeerId("other")))
    assert opened.untold(COORDINATOR.peer_id) == ()


def test_a_report_stays_within_its_bound_and_the_rest_follows() -> None:
    opened = OpenedLeases()
    for number in range(OPENED_LEASES_MAX + 3):
        opened.note(numbered(number))
    first = opened.untold(COORDINATOR.peer_id)
    assert len(first) == OPENED_LEASES_MAX
    opened.told(COORDINATOR.peer_id, first)
    assert len(opened.untold(COORDINATOR.peer_id)) == 3


def test_uploads_are_told_while_they_arrive_in_every_report() -> None:
    opened = OpenedLeases()
    for number in range(OPENED_LEASES_MAX + 1):
        opened.note_arriving(numbered(number))
    opened.note_arriving(numbered(0, PeerId("other")))
    assert len(opened.arriving(COORDINATOR.peer_id)) == OPENED_LEASES_MAX
    opened.note_arrived(numbered(1).lease_id)
    opened.note_arrived(numbered(1).lease_id)
    told = opened.arriving(COORDINATOR.peer_id)
    assert told[0] == numbered(2).lease_id, "the oldest first, and lease 0 is the other's now"
    assert opened.arriving(PeerId("other")) == (numbered(0).lease_id,)
