"""After a restart: what an earlier process left behind, read from the database.

Leases that are open go on. The records of nodes are made again from the answers that were paid
lately: as strangers, the nodes of a whole address block would share a few seats, and the next
failure of one of them would shut all of them out.
"""

from coordinator.db.engine import Database
from coordinator.db.leases import list_open_leases
from coordinator.db.receipts import list_settled_receipts
from coordinator.leasing.open_lease import OpenLease
from coordinator.leasing.registry import LeaseRegistry
from coordinator.market.market import Market
from coordinator.market.standing_rows import HALF_LIFE_MS
from protocol.countersigning import Delivery
from protocol.endings import FINISH_RULES
from protocol.envelope import open_envelope
from protocol.messages import Lease, Receipt
from protocol.pricing import Units

# Older answers have faded to a quarter. A node is proven by a dozen of one client.
REMEMBERED_MS = 2 * HALF_LIFE_MS
REMEMBERED_MAX = 2_000


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


async def restore_records(database: Database, market: Market, *, now_ms: int) -> None:
    """Count the answers that were paid lately for their nodes."""
    rows = await database.read(
        list_settled_receipts, since_ms=now_ms - REMEMBERED_MS, limit=REMEMBERED_MAX
    )
    answers = [
        (stored, is_own)
        for stored, is_own in rows
        if FINISH_RULES[open_envelope(stored.receipt, Receipt).message.finish].is_answer
    ]
    for stored, is_own in sorted(answers, key=lambda row: row[0].settled_at_ms or 0):
        market.remember(
            stored.node,
            stored.client,
            paid_nano=stored.amount_nano,
            is_first_hand=is_own,
            at_ms=min(stored.settled_at_ms or now_ms, now_ms),
        )


def _delivered(delivery: bytes | None) -> Units | None:
    return open_envelope(delivery, Delivery).message.units if delivery is not None else None
