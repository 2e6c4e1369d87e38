"""After a restart: what an earlier process left behind, read from the database.

Leases that are open go on. The records of nodes are made again from the answers that were paid
lately: as strangers, the nodes of a whole address block would share a few seats, and the next
failure of one of them would shut all of them out. The records of clients, and who differed with
whom about what was delivered, are made again from the ends of leases: a client that signs for
nothing would else begin anew with each restart.
"""

from coordinator.db.engine import Database
from coordinator.db.leases import EndedLease, list_ended_leases, list_open_leases
from coordinator.db.receipts import list_settled_receipts
from coordinator.leasing.open_lease import OpenLease
from coordinator.leasing.registry import LeaseRegistry, Settlement
from coordinator.market.market import Market
from protocol.countersigning import Delivery
from protocol.endings import FINISH_RULES, LeaseState, ReceiptState
from protocol.envelope import open_envelope
from protocol.messages import Lease, Receipt
from protocol.pricing import Units

# Most of what is older has faded, but not that a node has a record of its own: a dozen answers to
# one client make one, and a quiet night before a restart takes it from no node.
ANSWERS_SINCE_MS = 24 * 3_600_000
ANSWERS_MAX = 2_000
# The records of clients do not fade with time, and no signature is checked again for them: a day of
# a small market, of a large one the last minutes.
ENDED_SINCE_MS = 24 * 3_600_000
ENDED_MAX = 20_000


async def restore_leases(database: Database, leases: LeaseRegistry, *, now_ms: int) -> None:
    """Take up the leases that an earlier process left open."""
    rows = await database.read(list_open_leases)
    restored = [
        OpenLease(
            open_envelope(row.envelope, Lease),
            row.terms.api_key_id,
            delivered=_delivered(row.delivery),
            has_receipt=row.has_receipt,
            is_ahead=row.is_ahead,
        )
        for row in rows
    ]
    leases.restore(restored, now_ms=now_ms)


async def restore_records(
    database: Database, market: Market, *, now_ms: int, answers_max: int = ANSWERS_MAX
) -> None:
    """Count the last answers that were paid for their nodes."""
    rows = await database.read(
        list_settled_receipts, since_ms=now_ms - ANSWERS_SINCE_MS, limit=answers_max
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


async def restore_clients(
    database: Database, leases: LeaseRegistry, *, now_ms: int, ended_max: int = ENDED_MAX
) -> None:
    """Take the ends of leases into the records of their clients, and of the pairs of parties."""
    ended = await database.read(
        list_ended_leases, since_ms=now_ms - ENDED_SINCE_MS, limit=ended_max
    )
    for past in ended:
        if past.receipt_state is not None:
            if not _was_cut_by_us(past):
                leases.remember(past.node, past.client, _settlement(past))
        elif past.state is LeaseState.RELEASED and not (past.is_signed or past.is_lapsed_ahead):
            leases.clients.keep(past.client).note_opened(is_opened=False)


def _was_cut_by_us(past: EndedLease) -> bool:
    """The operator paid: see `OpenLease.was_cut_by_us`."""
    return past.is_own and not past.is_signed and past.state is not LeaseState.SETTLED


def _settlement(past: EndedLease) -> Settlement:
    is_disputed = past.receipt_state is ReceiptState.DISPUTED
    return Settlement(
        # Only whether it charged something is asked: a dispute is about a charge.
        billed_nano=max(past.paid_nano, int(is_disputed)),
        paid_nano=past.paid_nano,
        is_signed=past.is_signed,
        is_agreed=past.is_signed and not is_disputed,
    )


def _delivered(delivery: bytes | None) -> Units | None:
    return open_envelope(delivery, Delivery).message.units if delivery is not None else None
