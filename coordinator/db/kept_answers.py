"""Answers that a client may fetch again, sealed: by an idempotency key, or by a generation's id.

A name is claimed before anything is bought for it, and answered or dropped after. What is kept is
bounded by account and overall; the oldest answers go first, and a claim that is not answered yet
never does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, delete, func, insert, select, true, update

from coordinator.db.schema import kept_answers
from protocol.ids import JobId, PeerId

# Deleted in one go at most, so that no transaction takes long.
SWEEP_MAX = 1_000


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """`sealed` is None while the answer is not there."""

    request_digest: bytes
    job_id: JobId
    sealed: bytes | None
    created_at_ms: int


@dataclass(frozen=True, slots=True)
class KeptBounds:
    """How many answers, and how many bytes of them, are kept for one account and in all."""

    account_entries: int
    account_bytes: int
    entries: int
    bytes: int


_FIELDS = tuple(StoredAnswer.__slots__)
_COLUMNS = [kept_answers.c[field] for field in _FIELDS]


def claim_answer(
    conn: Connection,
    account: PeerId,
    name: str,
    request_digest: bytes,
    job_id: JobId,
    *,
    now_ms: int,
    expires_at_ms: int,
    bounds: KeptBounds,
) -> StoredAnswer | None:
    """Claim a name; or the answer, or the claim, that has it."""
    found = find_answer(conn, account, name, now_ms=now_ms)
    if found is not None:
        return found
    drop_answer(conn, account, name)
    conn.execute(
        insert(kept_answers).values(
            account=account,
            name=name,
            request_digest=request_digest,
            job_id=job_id,
            sealed=None,
            bytes=0,
            created_at_ms=now_ms,
            expires_at_ms=expires_at_ms,
        )
    )
    _make_room(conn, account, bounds)
    return None


def store_answer(
    conn: Connection,
    account: PeerId,
    name: str,
    sealed: bytes,
    *,
    expires_at_ms: int,
    bounds: KeptBounds,
) -> None:
    """The answer of a claim. A claim that has expired meanwhile needs none."""
    conn.execute(
        update(kept_answers)
        .where(_is(account, name))
        .values(sealed=sealed, bytes=len(sealed), expires_at_ms=expires_at_ms)
    )
    _make_room(conn, account, bounds)


def drop_answer(conn: Connection, account: PeerId, name: str) -> None:
    conn.execute(delete(kept_answers).where(_is(account, name)))


def find_answer(
    conn: Connection, account: PeerId, name: str, *, now_ms: int
) -> StoredAnswer | None:
    query = select(*_COLUMNS).where(_is(account, name), kept_answers.c.expires_at_ms > now_ms)
    row = conn.execute(query).first()
    return None if row is None else StoredAnswer(*row)


def expire_answers(conn: Connection, *, now_ms: int, bounds: KeptBounds) -> int:
    """Delete some of those that are over, or too many in all. Returns how many were over."""
    _evict(conn, true(), bounds.entries, bounds.bytes)
    due = (
        select(kept_answers.c.account, kept_answers.c.name)
        .where(kept_answers.c.expires_at_ms <= now_ms)
        .limit(SWEEP_MAX)
    )
    return _delete(conn, conn.execute(due).all())


def _make_room(conn: Connection, account: PeerId, bounds: KeptBounds) -> None:
    mine = kept_answers.c.account == account
    _evict(conn, mine, bounds.account_entries, bounds.account_bytes)


def _evict(conn: Connection, whose: ColumnElement[bool], entries_max: int, bytes_max: int) -> None:
    """Delete the oldest answers beyond the bounds."""
    columns = kept_answers.c
    count, size = conn.execute(
        select(func.count(), func.coalesce(func.sum(columns.bytes), 0)).where(whose)
    ).one()
    while count > entries_max or size > bytes_max:
        query = (
            select(columns.account, columns.name, columns.bytes)
            .where(whose, columns.sealed.is_not(None))
            .order_by(columns.created_at_ms)
            .limit(SWEEP_MAX)
        )
        oldest = conn.execute(query).all()
        gone = []
        for row in oldest:
            if count <= entries_max and size <= bytes_max:
                break
            gone.append(row[:2])
            count, size = count - 1, size - row[2]
        if not _delete(conn, gone):
            return


def _delete(conn: Connection, names: Sequence[Any]) -> int:
    for account, name in names:
        drop_answer(conn, account, name)
    return len(names)


def _is(account: PeerId, name: str) -> ColumnElement[bool]:
    return and_(kept_answers.c.account == account, kept_answers.c.name == name)
