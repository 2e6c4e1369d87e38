"""What an audit asks of the database; what the answers mean is in `coordinator.audit.books`."""

from typing import Any, NamedTuple

from sqlalchemy import (
    ColumnElement,
    Connection,
    Select,
    and_,
    case,
    exists,
    false,
    func,
    or_,
    select,
)

from coordinator.db.accounts import list_accounts
from coordinator.db.schema import (
    api_keys,
    failed_ids,
    jobs,
    leases,
    open_holds,
    receipts,
    transfers,
)
from coordinator.ledger.accounts import Account, AccountId
from coordinator.ledger.transfers import TransferCode, TransferKind
from protocol.endings import LeaseState, ReceiptState
from protocol.ids import LeaseId, TransferId
from protocol.job_state import JobState

_PAGE = 1_000


class ContradictingLease(NamedTuple):
    lease_id: str
    state: str
    hold_id: str
    resolution: str | None


class ContradictingJob(NamedTuple):
    client: str
    job_id: str
    state: str
    lease_state: str | None


class ContradictingSpending(NamedTuple):
    api_key_id: str
    spent_nano: int
    captured_nano: int


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
    agreements = {
        LeaseState.OPEN: _resolution.c.kind.is_(None),
        LeaseState.SETTLED: or_(_is(TransferKind.POST), _is_paid_late, _is_gift),
        LeaseState.RELEASED: _is(TransferKind.VOID),
        LeaseState.EXPIRED: and_(_is(TransferKind.EXPIRE), _late.c.id.is_(None)),
    }
    agrees = or_(*(and_(leases.c.state == state.value, fits) for state, fits in agreements.items()))
    query = _with_resolution(
        select(leases.c.lease_id, leases.c.state, leases.c.hold_id, _resolution.c.kind)
    ).where(func.coalesce(agrees, False).is_(False))
    return [ContradictingLease(*row) for row in conn.execute(query)]


def contradicting_receipts(conn: Connection) -> list[ContradictingReceipt]:
    """Receipts that are paid with another amount than they say."""
    captured = case((_is_gift, _gift.c.amount_nano), else_=_captured())
    query = (
        _with_resolution(
            select(receipts.c.lease_id, receipts.c.amount_nano, captured).join(
                leases, leases.c.lease_id == receipts.c.lease_id
            )
        )
        .where(receipts.c.state != ReceiptState.PENDING.value)
        .where(receipts.c.amount_nano != captured)
    )
    return [ContradictingReceipt(*row) for row in conn.execute(query)]


def leases_with_foreign_holds(conn: Connection) -> list[LeaseId]:
    """Leases whose holds are not for their clients, jobs, ceilings and times."""
    hold = transfers.alias("hold")
    query = (
        select(leases.c.lease_id)
        .outerjoin(hold, hold.c.id == leases.c.hold_id)
        .where(
            or_(
                hold.c.id.is_(None),
                hold.c.debit != leases.c.client,
                hold.c.job_id != leases.c.job_id,
                hold.c.amount_nano != leases.c.ceiling_nano,
                hold.c.timeout_at_ms != leases.c.expires_at_ms,
            )
        )
    )
    return list(conn.scalars(query))


def contradicting_jobs(conn: Connection) -> list[ContradictingJob]:
    """Jobs whose state is not what the rule of `coordinator.db.jobs` makes of their leases."""
    last = leases.alias("last")
    of_job = and_(leases.c.client == jobs.c.client, leases.c.job_id == jobs.c.job_id)
    is_paid = exists().where(of_job, leases.c.state == LeaseState.SETTLED.value)
    is_open = last.c.state == LeaseState.OPEN.value
    agrees = case(
        (jobs.c.state == JobState.SETTLED.value, or_(is_paid, last.c.state.is_not(None))),
        (jobs.c.state == JobState.LEASED.value, and_(is_open, ~is_paid)),
        (
            jobs.c.state.in_([JobState.REFUSED.value, JobState.EXPIRED.value]),
            and_(~is_open, ~is_paid),
        ),
        else_=false(),
    )
    query = (
        select(jobs.c.client, jobs.c.job_id, jobs.c.state, last.c.state)
        .outerjoin(
            last,
            and_(
                last.c.client == jobs.c.client,
                last.c.job_id == jobs.c.job_id,
                last.c.attempt == jobs.c.attempt,
            ),
        )
        .where(func.coalesce(agrees, False).is_(False))
    )
    return [ContradictingJob(*row) for row in conn.execute(query)]


def contradicting_spending(conn: Connection) -> list[ContradictingSpending]:
    """API keys whose spending is not the sum of what was captured from their leases' holds."""
    paid = (
        _with_resolution(select(leases.c.api_key_id, _captured().label("nano")))
        .where(leases.c.api_key_id.is_not(None))
        .subquery()
    )
    captured = func.coalesce(func.sum(paid.c.nano), 0)
    query = (
        select(api_keys.c.id, api_keys.c.spent_nano, captured)
        .outerjoin(paid, paid.c.api_key_id == api_keys.c.id)
        .group_by(api_keys.c.id, api_keys.c.spent_nano)
        .having(api_keys.c.spent_nano != captured)
    )
    return [ContradictingSpending(*row) for row in conn.execute(query)]


# What ended a lease's hold, and after an expiry the capture that was made of it late: in the same
# chain, so it is the very next transfer, and posted at once because no hold is left. A capture that
# resolves a hold may stand there too: of another client, that chose the same job id.
_resolution = transfers.alias("resolution")
_late = transfers.alias("late")
_is_paid_late = _late.c.id.is_not(None)
# Likewise what the operator paid instead of the client.
_gift = transfers.alias("gift")
_is_gift = _gift.c.id.is_not(None)


def _captured() -> ColumnElement[int]:
    """What the client of a lease has paid."""
    return case(
        (_is(TransferKind.POST), _resolution.c.amount_nano),
        (_is_paid_late, _late.c.amount_nano),
        else_=0,
    )


def _is(kind: TransferKind) -> ColumnElement[bool]:
    return _resolution.c.kind == kind.value


def _with_resolution(query: Select[Any]) -> Select[Any]:
    return (
        query.outerjoin(_resolution, _resolution.c.pending_id == leases.c.hold_id)
        .outerjoin(
            _late,
            and_(
                _resolution.c.kind == TransferKind.EXPIRE.value,
                _late.c.sequence == _resolution.c.sequence + 1,
                _late.c.code == TransferCode.CAPTURE.value,
                _late.c.kind == TransferKind.POSTED.value,
                _late.c.job_id == _resolution.c.job_id,
            ),
        )
        .outerjoin(
            _gift,
            and_(
                _gift.c.sequence == _resolution.c.sequence + 1,
                _gift.c.code == TransferCode.GOODWILL.value,
                _gift.c.job_id == _resolution.c.job_id,
            ),
        )
    )
