"""What an audit asks of the database; what the answers mean is in `coordinator.ledger.audit`."""

from typing import NamedTuple

from sqlalchemy import Connection, and_, case, func, or_, select

from coordinator.db.accounts import list_accounts
from coordinator.db.schema import (
    LeaseState,
    ReceiptState,
    failed_ids,
    leases,
    open_holds,
    receipts,
    transfers,
)
from coordinator.ledger.accounts import Account, AccountId
from coordinator.ledger.transfers import TransferKind
from protocol.ids import TransferId

_PAGE = 1_000


class ContradictingLease(NamedTuple):
    lease_id: str
    state: str
    hold_id: str
    resolution: str | None


class ContradictingReceipt(NamedTuple):
    lease_id: str
    amount_nano: int
    captured_nano: int


def load_accounts(conn: Connection) -> dict[AccountId, Account]:
    """All accounts."""
    accounts: dict[AccountId, Account] = {}
    after = None
    while page := list_accounts(conn, after=after, limit=_PAGE):
        accounts.update((account.id, account) for account in page)
        after = page[-1].id
    return accounts


def load_open_holds(conn: Connection) -> dict[TransferId, int]:
    """The timeouts of the holds that are listed as open."""
    query = select(open_holds.c.transfer_id, open_holds.c.timeout_at_ms)
    return {row[0]: row[1] for row in conn.execute(query)}


def repeated_ids(conn: Connection) -> list[TransferId]:
    """Ids that several transfers share. The unique index forbids it, unless someone dropped it."""
    query = select(transfers.c.id).group_by(transfers.c.id).having(func.count() > 1)
    return list(conn.scalars(query))


def failed_ids_that_happened(conn: Connection) -> list[TransferId]:
    query = select(failed_ids.c.id).join(transfers, transfers.c.id == failed_ids.c.id)
    return list(conn.scalars(query))


def contradicting_leases(conn: Connection) -> list[ContradictingLease]:
    """Leases whose state says something else than what became of their holds."""
    resolution = transfers.alias("resolution")
    agreements = {
        LeaseState.SETTLED: TransferKind.POST,
        LeaseState.RELEASED: TransferKind.VOID,
        LeaseState.EXPIRED: TransferKind.EXPIRE,
    }
    agrees = or_(
        and_(leases.c.state == LeaseState.OPEN.value, resolution.c.kind.is_(None)),
        *(
            and_(leases.c.state == state.value, resolution.c.kind == kind.value)
            for state, kind in agreements.items()
        ),
    )
    query = (
        select(leases.c.lease_id, leases.c.state, leases.c.hold_id, resolution.c.kind)
        .outerjoin(resolution, resolution.c.pending_id == leases.c.hold_id)
        .where(func.coalesce(agrees, False).is_(False))
    )
    return [ContradictingLease(*row) for row in conn.execute(query)]


def contradicting_receipts(conn: Connection) -> list[ContradictingReceipt]:
    """Receipts that are paid with another amount than they say."""
    resolution = transfers.alias("resolution")
    captured = case(
        (resolution.c.kind == TransferKind.POST.value, resolution.c.amount_nano), else_=0
    )
    query = (
        select(receipts.c.lease_id, receipts.c.amount_nano, captured)
        .join(leases, leases.c.lease_id == receipts.c.lease_id)
        .outerjoin(resolution, resolution.c.pending_id == leases.c.hold_id)
        .where(receipts.c.state != ReceiptState.PENDING.value)
        .where(receipts.c.amount_nano != captured)
    )
    return [ContradictingReceipt(*row) for row in conn.execute(query)]
