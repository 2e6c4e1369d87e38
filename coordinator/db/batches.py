"""Batches in the books: what was asked for, and how far it is."""

from dataclasses import asdict, fields

from sqlalchemy import Connection, insert, select, update

from coordinator.db.files import cut
from coordinator.db.filing_rows import BatchStatus, Page, StoredBatch
from coordinator.db.schema import batches
from coordinator.ledger.accounts import AccountId

_NAMES = tuple(field.name for field in fields(StoredBatch))
_COLUMNS = [batches.c[name] for name in _NAMES]


def insert_batch(conn: Connection, batch: StoredBatch) -> None:
    conn.execute(insert(batches).values(asdict(batch) | {"status": batch.status.value}))


def store_batch(conn: Connection, batch: StoredBatch) -> None:
    """Everything that may have changed of it."""
    values = asdict(batch) | {"status": batch.status.value}
    conn.execute(update(batches).where(batches.c.id == batch.id).values(values))


def find_batch(conn: Connection, batch_id: str) -> StoredBatch | None:
    row = conn.execute(select(*_COLUMNS).where(batches.c.id == batch_id)).first()
    return None if row is None else _batch(tuple(row))


def list_batches(conn: Connection, account: AccountId, page: Page) -> list[StoredBatch]:
    query = select(*_COLUMNS).where(batches.c.account == account)
    return [_batch(tuple(row)) for row in conn.execute(cut(query, batches.c.id, page))]


def list_open_batches(conn: Connection) -> list[StoredBatch]:
    """Those that have not ended, oldest first."""
    query = select(*_COLUMNS).where(batches.c.ended_at_ms.is_(None)).order_by(batches.c.id)
    return [_batch(tuple(row)) for row in conn.execute(query)]


def _batch(row: tuple[object, ...]) -> StoredBatch:
    values = dict(zip(_NAMES, row, strict=True))
    status = BatchStatus(str(values.pop("status")))
    return StoredBatch(**values, status=status)  # type: ignore[arg-type]  # the schema's types
