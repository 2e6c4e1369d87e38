"""API keys of HTTP users: stored as hashes, each with its budget and rate.

The key itself is shown once, when it is made, and cannot be recovered.
"""

import hmac
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, bindparam, case, func, insert, literal_column, select, update

from coordinator.db.bulk import BulkQuery, BulkUpdate
from coordinator.db.digests import row_digest
from coordinator.db.schema import api_keys, open_holds
from coordinator.ledger.accounts import AccountId
from coordinator.ledger.key_budgets import KeyFunds
from protocol.clock import Entropy
from protocol.grants import KeyUse
from protocol.ids import ULID_ENTROPY_BYTES, new_ulid
from protocol.programs.api_key_secret import ApiKeySecret, hash_secret


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is stored of a key. `budget_nano` and `requests_per_minute` are None for no limit."""

    id: str
    account: AccountId
    prefix: str
    name: str
    created_at_ms: int
    revoked_at_ms: int | None
    budget_nano: int | None
    spent_nano: int
    requests_per_minute: int | None


_FIELDS = tuple(ApiKey.__slots__)
_COLUMNS = [api_keys.c[field] for field in _FIELDS]

_SPEND = BulkUpdate(
    update(api_keys)
    .values(spent_nano=api_keys.c.spent_nano + bindparam("amount"))
    .where(api_keys.c.id == bindparam("key")),
    ("amount", "key"),
)

# A sum over the key's open holds: they are jobs in flight, and the key's own only.
_HELD_NANO = (
    select(func.coalesce(func.sum(open_holds.c.counted_nano), literal_column("0")))
    .where(open_holds.c.api_key_id == api_keys.c.id)
    .scalar_subquery()
)
_SELECT_FUNDS = BulkQuery(
    select(
        api_keys.c.id,
        api_keys.c.revoked_at_ms,
        case(
            (
                api_keys.c.budget_nano.is_not(None),
                api_keys.c.budget_nano - api_keys.c.spent_nano - _HELD_NANO,
            )
        ),
    ),
    api_keys.c.id,
)


def create_api_key(
    conn: Connection,
    account: AccountId,
    name: str,
    *,
    now_ms: int,
    entropy: Entropy,
    budget_nano: int | None = None,
    requests_per_minute: int | None = None,
) -> tuple[str, ApiKey]:
    """Make a key for an existing account. Returns the secret, which is not stored, and its row."""
    secret = ApiKeySecret.new(entropy)
    key = ApiKey(
        id=new_ulid(now_ms, entropy(ULID_ENTROPY_BYTES)),
        account=account,
        prefix=secret.prefix,
        name=name,
        created_at_ms=now_ms,
        revoked_at_ms=None,
        budget_nano=budget_nano,
        spent_nano=0,
        requests_per_minute=requests_per_minute,
    )
    values = {field: getattr(key, field) for field in _FIELDS}
    key_hash = hash_secret(secret.text)
    digest = _digest(key, key_hash)
    conn.execute(insert(api_keys).values(key_hash=key_hash, digest=digest, **values))
    return secret.text, key


def authenticate(conn: Connection, secret: str) -> ApiKey | None:
    """The key with this secret, unless it is unknown or revoked."""
    key_hash = hash_secret(secret)
    query = select(api_keys.c.key_hash, *_COLUMNS).where(api_keys.c.key_hash == key_hash)
    row = conn.execute(query).first()
    # The index compares hashes, whose order says nothing of keys; this is for the last doubt.
    if row is None or not hmac.compare_digest(row[0], key_hash):
        return None
    key = _key(row[1:])
    return key if key.revoked_at_ms is None else None


def find_api_key(conn: Connection, key_id: str) -> ApiKey | None:
    """The key with this id, also if it was revoked."""
    row = conn.execute(select(*_COLUMNS).where(api_keys.c.id == key_id)).first()
    return None if row is None else _key(tuple(row))


def list_api_keys(conn: Connection, *, account: AccountId | None = None) -> list[ApiKey]:
    """All keys, oldest first, revoked ones too."""
    query = select(*_COLUMNS).order_by(api_keys.c.id)
    if account is not None:
        query = query.where(api_keys.c.account == account)
    return [_key(row) for row in conn.execute(query)]


def revoke_api_key(conn: Connection, key_id: str, *, now_ms: int) -> bool:
    """Refuse the key from now on. False if there is no such key, or it was revoked before."""
    query = select(api_keys.c.key_hash, *_COLUMNS).where(api_keys.c.id == key_id)
    row = conn.execute(query).first()
    if row is None or _key(row[1:]).revoked_at_ms is not None:
        return False
    revoked = replace(_key(row[1:]), revoked_at_ms=now_ms)
    change = (
        update(api_keys)
        .where(api_keys.c.id == key_id)
        .values(revoked_at_ms=now_ms, digest=_digest(revoked, row[0]))
    )
    return conn.execute(change).rowcount == 1


def find_key_funds(conn: Connection, key_ids: Collection[str]) -> dict[str, KeyFunds]:
    """What these keys may still hold; keys that do not exist are left out."""
    return {
        key_id: KeyFunds(revoked_at_ms is not None, left_nano)
        for key_id, revoked_at_ms, left_nano in _SELECT_FUNDS.select(conn, key_ids)
    }


def find_key_use(conn: Connection, key_id: str) -> KeyUse | None:
    """What is known of a key's own budget and use, for the one who holds it."""
    query = select(*_COLUMNS, _HELD_NANO).where(api_keys.c.id == key_id)
    row = conn.execute(query).first()
    if row is None:
        return None
    key = _key(row[:-1])
    return KeyUse(
        key.id,
        key.name or key.prefix,
        key.created_at_ms,
        budget_nano=key.budget_nano,
        spent_nano=key.spent_nano,
        held_nano=row[-1],
        requests_per_minute=key.requests_per_minute,
    )


def store_spending(conn: Connection, spent_nano: Mapping[str, int]) -> None:
    """Count what was charged to keys, together with the captures.

    It is never refused: what was delivered is paid. A budget is enforced when money is held.
    """
    if spent_nano:
        _SPEND.run(conn, [(amount_nano, key_id) for key_id, amount_nano in spent_nano.items()])


def damaged_api_keys(conn: Connection) -> Iterator[str]:
    """Keys whose stored values are not those that were written. What a key has spent is not among
    them: an audit adds it up."""
    for key_hash, digest, *row in conn.execute(
        select(api_keys.c.key_hash, api_keys.c.digest, *_COLUMNS)
    ):
        key = _key(row)
        if digest != _digest(key, key_hash):
            yield key.id


def _digest(key: ApiKey, key_hash: bytes) -> bytes:
    return row_digest(
        "api_keys",
        key.id,
        key.account,
        key_hash,
        key.prefix,
        key.name,
        key.created_at_ms,
        key.revoked_at_ms,
        key.budget_nano,
        key.requests_per_minute,
    )


def _key(row: Sequence[Any]) -> ApiKey:
    return ApiKey(*row)
