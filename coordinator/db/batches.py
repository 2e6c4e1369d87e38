"""Batches as stored: what was asked for, and how far it is."""

from dataclasses import asdict, dataclass, fields
from enum import StrEnum

from sqlalchemy import Connection, func, insert, select, update

from coordinator.db.files import Page
from coordinator.db.schema import batches
from coordinator.ledger.accounts import AccountId


class BatchStatus(StrEnum):
    """OpenAI's words."""

    VALIDATING = "validating"
    FAILED = "failed"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """`labels` and `errors` are JSON as their reader gave it. `ended_at_ms` is the time of the
    last status: completed, failed, expired or cancelled."""

    id: str
    account: AccountId
    api_key_id: str
    endpoint: str
    input_file_id: str
    output_lifetime_s: int | None
    labels: str
    created_at_ms: int
    expires_at_ms: int
    takes: int = 0
    status: BatchStatus = BatchStatus.VALIDATING
    in_progress_at_ms: int | None = None
    finalizing_at_ms: int | None = None
    cancelling_at_ms: int | None = None
    ended_at_ms: int | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_nano: int = 0
    errors: str = "[]"
    output_file_id: str | None = None
    error_file_id: str | None = None


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
    return [_batch(tuple(row)) for row in conn.execute(page.cut(query, batches.c.id))]


def list_open_batches(conn: Connection) -> list[StoredBatch]:
    """Those that have not ended, oldest first."""
    query = select(*_COLUMNS).where(batches.c.ended_at_ms.is_(None)).order_by(batches.c.id)
    return [_batch(tuple(row)) for row in conn.execute(query)]


def count_open_batches(conn: Connection, account: AccountId) -> int:
    query = select(func.count()).where(
        batches.c.account == account, batches.c.ended_at_ms.is_(None)
    )
    return int(conn.scalar(query) or 0)


def _batch(row: tuple[object, ...]) -> StoredBatch:
    values = dict(zip(_NAMES, row, strict=True))
    status = BatchStatus(str(values.pop("status")))
    return StoredBatch(**values, status=status)  # type: ignore[arg-type]  # the schema's types
