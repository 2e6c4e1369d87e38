"""The books as stored: append-only transfers, and the two caches beside them.

Everything here reads and writes inside one transaction of its caller, so what `load_book` returned
still holds when `store_applied` writes, whoever else has the file open.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import (
    Connection,
    delete,
    desc,
    or_,
    select,
)

from coordinator.db.accounts import find_accounts, store_accounts
from coordinator.db.bulk import BulkInsert, BulkQuery
from coordinator.db.schema import failed_ids, open_holds, transfers
from coordinator.ledger.accounts import AccountId
from coordinator.ledger.machine import Applied, Book, Chain
from coordinator.ledger.transfers import (
    RecordedTransfer,
    Transfer,
    TransferCode,
    TransferKind,
)
from protocol.ids import TransferId

_FIELDS = [transfers.c[field] for field in Transfer._fields]
_RECORDED = (transfers.c.sequence, transfers.c.created_at_ns, *_FIELDS)
_HOLDS = select(*_FIELDS).join(open_holds, open_holds.c.transfer_id == transfers.c.id)

# Enum members look up faster in a dict than by calling their class.
_KINDS = {kind.value: kind for kind in TransferKind}
_CODES = {code.value: code for code in TransferCode}

_SELECT_BY_ID = BulkQuery(select(*_FIELDS), transfers.c.id)
_SELECT_HOLDS = BulkQuery(_HOLDS, open_holds.c.transfer_id)
_SELECT_RESOLUTIONS = BulkQuery(
    select(transfers.c.pending_id, transfers.c.kind), transfers.c.pending_id
)
_SELECT_FAILED = BulkQuery(select(failed_ids.c.id), failed_ids.c.id)
_SELECT_LAST = (
    select(transfers.c.sequence, transfers.c.created_at_ns)
    .order_by(desc(transfers.c.sequence))
    .limit(1)
)

_INSERT = BulkInsert(transfers, ("sequence", "created_at_ns", *Transfer._fields))
_OPEN_HOLDS = BulkInsert(open_holds, ("transfer_id", "timeout_at_ms"))
_CLOSE_HOLDS = BulkQuery(delete(open_holds), open_holds.c.transfer_id)
_INSERT_FAILED = BulkInsert(failed_ids, ("id", "failed_at_ms"))


def load_book(conn: Connection, chains: Sequence[Chain]) -> Book:
    """All that the books know about what `chains` mention."""
    submitted = [transfer for chain in chains for transfer in chain.transfers]
    account_ids = {transfer.debit for transfer in submitted}
    account_ids.update(transfer.credit for transfer in submitted)
    account_ids.update(account.id for chain in chains for account in chain.opens)
    ids = [transfer.id for transfer in submitted]
    pending_ids = {t.pending_id for t in submitted if t.pending_id is not None}
    existing = _select(conn, _SELECT_BY_ID, ids)
    holds = _select(conn, _SELECT_HOLDS, pending_ids)
    resolutions: dict[TransferId, TransferKind] = {}
    if strays := pending_ids - holds.keys():
        # Rare: a retry, or a capture that lost against the sweep.
        existing |= find_transfers(conn, strays)
        found = _SELECT_RESOLUTIONS.select(conn, strays)
        resolutions = {pending_id: _KINDS[kind] for pending_id, kind in found}
    last = conn.execute(_SELECT_LAST).first()
    return Book(
        accounts=find_accounts(conn, account_ids),
        existing=existing,
        holds=holds,
        resolutions=resolutions,
        failed_ids={row[0] for row in _SELECT_FAILED.select(conn, ids)},
        last_sequence=last[0] if last else 0,
        last_at_ns=last[1] if last else 0,
    )


def store_applied(conn: Connection, applied: Applied, *, now_ms: int) -> None:
    """Write what a batch changed. Raises ConstraintError if it contradicts what is stored."""
    store_accounts(conn, applied.accounts)
    start, start_ns = applied.first_sequence, applied.first_at_ns
    rows = [
        (start + offset, start_ns + offset, *transfer)
        for offset, transfer in enumerate(applied.transfers)
    ]
    _INSERT.run(conn, rows)
    _OPEN_HOLDS.run(conn, [(hold.id, hold.timeout_at_ms) for hold in applied.opened_holds])
    _CLOSE_HOLDS.delete(conn, applied.closed_holds)
    _INSERT_FAILED.run(conn, [(failed_id, now_ms) for failed_id in applied.failed_ids])


def find_transfers(conn: Connection, ids: Collection[TransferId]) -> dict[TransferId, Transfer]:
    """Those of `ids` that happened."""
    return _select(conn, _SELECT_BY_ID, ids)


def find_recorded(conn: Connection, transfer_id: TransferId) -> RecordedTransfer | None:
    query = select(*_RECORDED).where(transfers.c.id == transfer_id)
    row = conn.execute(query).first()
    return None if row is None else _recorded(row)


def list_transfers(
    conn: Connection,
    *,
    account: AccountId | None = None,
    before: int | None = None,
    limit: int = 100,
) -> list[RecordedTransfer]:
    """The newest transfers, newest first; `before` is the sequence that the last page ended with.

    For one account this scans (see `coordinator.db.schema`): about 0.1 s for a million transfers.
    """
    query = select(*_RECORDED).order_by(desc(transfers.c.sequence)).limit(limit)
    if account is not None:
        query = query.where(or_(transfers.c.debit == account, transfers.c.credit == account))
    if before is not None:
        query = query.where(transfers.c.sequence < before)
    return [_recorded(row) for row in conn.execute(query)]


def iterate_transfers(conn: Connection, *, page: int = 1000) -> Iterator[RecordedTransfer]:
    """All transfers in order, holding one page in memory."""
    after = 0
    while True:
        # Seek instead of one open cursor: drivers other than SQLite's would fetch everything.
        query = (
            select(*_RECORDED)
            .where(transfers.c.sequence > after)
            .order_by(transfers.c.sequence)
            .limit(page)
        )
        rows = conn.execute(query).all()
        if not rows:
            return
        for row in rows:
            yield _recorded(row)
        after = rows[-1][0]


def list_due_holds(conn: Connection, now_ms: int, *, limit: int) -> list[Transfer]:
    """Open holds whose timeout has come, the oldest first."""
    is_due = open_holds.c.timeout_at_ms <= now_ms
    query = _HOLDS.where(is_due).order_by(open_holds.c.timeout_at_ms).limit(limit)
    return [_transfer(row) for row in conn.execute(query)]


def _select(
    conn: Connection, query: BulkQuery, ids: Collection[TransferId]
) -> dict[TransferId, Transfer]:
    return {row[0]: _transfer(row) for row in query.select(conn, ids)}


def _transfer(row: Sequence[Any]) -> Transfer:
    transfer_id, debit, credit, amount_nano, kind, code, *rest = row
    return Transfer(transfer_id, debit, credit, amount_nano, _KINDS[kind], _CODES[code], *rest)


def _recorded(row: Sequence[Any]) -> RecordedTransfer:
    sequence, created_at_ns, *fields = row
    return RecordedTransfer(sequence, created_at_ns, _transfer(fields))
