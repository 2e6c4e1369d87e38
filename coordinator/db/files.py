"""Files of HTTP users in the books: what they are called and until when they are kept."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select

from coordinator.db.filing_rows import Page, StoredFile
from coordinator.db.schema import files
from coordinator.ledger.accounts import AccountId

_COLUMNS = [files.c[field.name] for field in fields(StoredFile)]


def insert_file(conn: Connection, stored: StoredFile) -> None:
    conn.execute(insert(files).values(asdict(stored)))


def find_file(conn: Connection, file_id: str) -> StoredFile | None:
    return _first(conn.execute(select(*_COLUMNS).where(files.c.id == file_id)).all())


def list_files(
    conn: Connection, account: AccountId, page: Page, *, purpose: str | None = None
) -> list[StoredFile]:
    query = select(*_COLUMNS).where(files.c.account == account)
    if purpose is not None:
        query = query.where(files.c.purpose == purpose)
    return [StoredFile(*row) for row in conn.execute(cut(query, files.c.id, page))]


def list_expired_files(conn: Connection, *, now_ms: int, limit: int) -> list[StoredFile]:
    query = select(*_COLUMNS).where(files.c.expires_at_ms <= now_ms).limit(limit)
    return [StoredFile(*row) for row in conn.execute(query)]


def list_file_ids(conn: Connection) -> set[str]:
    return set(conn.scalars(select(files.c.id)))


def delete_file(conn: Connection, file_id: str) -> bool:
    """False if there is no such file."""
    return conn.execute(delete(files).where(files.c.id == file_id)).rowcount == 1


def bytes_by_account(conn: Connection) -> dict[str, int]:
    """What the files of each account add up to."""
    query = select(files.c.account, func.sum(files.c.bytes)).group_by(files.c.account)
    return {account: int(size) for account, size in conn.execute(query)}


def cut(query: Any, id_column: Any, page: Page) -> Any:
    """A query of one part of a list."""
    if page.after is not None:
        is_behind = id_column > page.after if page.is_ascending else id_column < page.after
        query = query.where(is_behind)
    order = id_column.asc() if page.is_ascending else id_column.desc()
    return query.order_by(order).limit(page.limit)


def _first(rows: Sequence[Any]) -> StoredFile | None:
    return StoredFile(*rows[0]) if rows else None
