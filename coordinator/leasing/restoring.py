"""After a restart: the leases that an earlier process left open, read from the database."""

from coordinator.db.engine import Database
from coordinator.db.leases import list_open_leases
from coordinator.leasing.open_lease import OpenLease
from coordinator.leasing.registry import LeaseRegistry
from protocol.countersigning import Delivery
from protocol.envelope import open_envelope
from protocol.messages import Lease
from protocol.pricing import Units


async def restore_leases(database: Database, leases: LeaseRegistry, *, now_ms: int) -> None:
    """Take up the leases that an earlier process left open."""
    rows = await database.read(list_open_leases)
    restored = [
        OpenLease(
            open_envelope(row.envelope, Lease),
            row.terms.api_key_id,
            delivered=_delivered(row.delivery),
            has_receipt=row.has_receipt,
        )
        for row in rows
    ]
    leases.restore(restored, now_ms=now_ms)


def _delivered(delivery: bytes | None) -> Units | None:
    return open_envelope(delivery, Delivery).message.units if delivery is not None else None
