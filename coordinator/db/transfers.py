"""The books as stored: append-only transfers, and the two caches beside them.

Everything here reads and writes inside one transaction of its caller, so what `load_book` returned
still holds when `store_applied` writes, even if another program has the file open.
"""

from collections.abc import Collection, Iterator, Sequence
from itertools import count
from typing import Any

from sqlalchemy import Connection, bindparam, delete, desc, func, or_, select, update

from coordinator.db.accounts import find_accounts, store_accounts
from coordinator.db.api_keys import find_key_funds, store_spending
from coordinator.db.bulk import BulkInsert, BulkQuery, BulkUpdate, FixedQuery, Record
from coordinator.db.schema import failed_ids, open_holds, transfers
from coordinator.ledger.accounts import AccountId
from coordinator.ledger.hash_chain import GENESIS, next_hash
from coordinator.ledger.key_budgets import KeyedHold
from coordinator.ledger.machine import Applied, Book, Chain
from coordinator.ledger.transfers import (
    RecordedTransfer,
    Transfer,
    TransferCode,
    TransferKind,
)
from protocol.ids import TransferId

_FIELDS = [transfers.c[field] for field in Transfer._fields]
_RECORDED = (transfers.c.sequence, transfers.c.created_at_ns, *_FIELDS, transfers.c.chain_hash)
_HOLDS = select(*_FIELDS).join(open_holds, open_holds.c.transfer_id == transfers.c.id)
_DUE_HOLDS = (
    _HOLDS.where(open_holds.c.timeout_at_ms <= bindparam("now_ms"))
    .order_by(open_holds.c.timeout_at_ms)
    .limit(bindparam("at_most"))
)

# Enum members look up faster in a dict than by calling their class.
_KINDS = {kind.value: kind for kind in TransferKind}
_CODES = {code.value: code for code in TransferCode}

_SELECT_BY_ID = BulkQuery(select(*_FIELDS), transfers.c.id)
_SELECT_HOLDS = BulkQuery(
    _HOLDS.add_columns(open_holds.c.api_key_id, open_holds.c.counted_nano), open_holds.c.transfer_id
)
_SELECT_RESOLUTIONS = BulkQuery(
    select(transfers.c.pending_id, transfers.c.kind), transfers.c.pending_id
)
_SELECT_FAILED = BulkQuery(select(failed_ids.c.id), failed_ids.c.id)
_SELECT_LAST = FixedQuery(
    select(transfers.c.sequence, transfers.c.created_at_ns, transfers.c.chain_hash)
    .order_by(desc(transfers.c.sequence))
    .limit(1)
)

_INSERT = BulkInsert(transfers, ("sequence", "created_at_ns", *Transfer._fields, "chain_hash"))
_OPEN_HOLDS = BulkInsert(open_holds, ("transfer_id", "timeout_at_ms", "counted_nano", "api_key_id"))
_CLOSE_HOLDS = BulkQuery(delete(open_holds), open_holds.c.transfer_id)
_BOUND_HOLD = BulkUpdate(
    update(open_holds)
    .values(counted_nano=bindparam("most"))
    .where(open_holds.c.transfer_id == bindparam("hold"))
    .where(open_holds.c.counted_nano > bindparam("less_than")),
    ("most", "hold", "less_than"),
    must_hit=False,
)
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
    holds: dict[TransferId, Transfer] = {}
    keyed_holds: dict[TransferId, KeyedHold] = {}
    for *fields, api_key_id, counted_nano in _SELECT_HOLDS.select(conn, pending_ids):
        holds[fields[0]] = _transfer(fields)
        if api_key_id is not None:
            keyed_holds[fields[0]] = KeyedHold(api_key_id, counted_nano)
    resolutions: dict[TransferId, TransferKind] = {}
    if strays := pending_ids - holds.keys():
        # Rare: a retry, or a capture that lost against the sweep.
        existing |= find_transfers(conn, strays)
        found = _SELECT_RESOLUTIONS.select(conn, strays)
        resolutions = {pending_id: _KINDS[kind] for pending_id, kind in found}
    last = _SELECT_LAST.first(conn)
    return Book(
        accounts=find_accounts(conn, account_ids),
        existing=existing,
        holds=holds,
        resolutions=resolutions,
        failed_ids={row[0] for row in _SELECT_FAILED.select(conn, ids)},
        last_sequence=last[0] if last else 0,
        last_at_ns=last[1] if last else 0,
        last_hash=last[2] if last else GENESIS,
        keys=find_key_funds(conn, {chain.api_key_id for chain in chains if chain.api_key_id}),
        keyed_holds=keyed_holds,
    )


def store_applied(conn: Connection, applied: Applied, *, now_ms: int) -> None:
    """Write what a batch changed. Raises ConstraintError if it contradicts what is stored."""
    store_accounts(conn, applied.accounts)
    _INSERT.run(conn, _rows(applied))
    opened = [
        (hold.transfer.id, hold.transfer.timeout_at_ms, hold.transfer.amount_nano, hold.api_key_id)
        for hold in applied.opened_holds
    ]
    _OPEN_HOLDS.run(conn, opened)
    store_spending(conn, applied.spent)
    _CLOSE_HOLDS.delete(conn, applied.closed_holds)
    _INSERT_FAILED.run(conn, [(failed_id, now_ms) for failed_id in applied.failed_ids])


def record_hold_bound(hold_id: TransferId, most_nano: int) -> Record:
    """It is known that an open hold's job will cost no more than this: its key's budget may spend
    the rest. The hold itself keeps its amount, and an ended one stays ended."""
    return Record(_BOUND_HOLD, (most_nano, hold_id, most_nano))


def _rows(applied: Applied) -> list[tuple[Any, ...]]:
    """The transfers as rows, each with the hash that chains it to the one before."""
    chain_hash = applied.previous_hash
    rows = []
    stamps = zip(count(applied.first_sequence), count(applied.first_at_ns), applied.transfers)
    for sequence, at_ns, transfer in stamps:
        chain_hash = next_hash(chain_hash, sequence, at_ns, transfer)
        rows.append((sequence, at_ns, *transfer, chain_hash))
    return rows


def find_transfers(conn: Connection, ids: Collection[TransferId]) -> dict[TransferId, Transfer]:
    """Those of `ids` that happened."""
    return _select(conn, _SELECT_BY_ID, ids)


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


def iterate_transfers(
    conn: Connection, *, after: int = 0, page: int = 1000
) -> Iterator[RecordedTransfer]:
    """All transfers behind a sequence, in order, holding one page in memory."""
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
    rows = conn.execute(_DUE_HOLDS, {"now_ms": now_ms, "at_most": limit})
    return [_transfer(row) for row in rows]


def count_open_holds(conn: Connection) -> int:
    return int(conn.execute(select(func.count()).select_from(open_holds)).scalar_one())


def _select(
    conn: Connection, query: BulkQuery, ids: Collection[TransferId]
) -> dict[TransferId, Transfer]:
    return {row[0]: _transfer(row) for row in query.select(conn, ids)}


def _transfer(row: Sequence[Any]) -> Transfer:
    transfer_id, debit, credit, amount_nano, kind, code, *rest = row
    return Transfer(transfer_id, debit, credit, amount_nano, _KINDS[kind], _CODES[code], *rest)


def _recorded(row: Sequence[Any]) -> RecordedTransfer:
    sequence, created_at_ns, *fields, chain_hash = row
    return RecordedTransfer(sequence, created_at_ns, _transfer(fields), chain_hash)
