"""API keys of HTTP users: stored as hashes, each with its budget and rate.

The key itself is shown once, when it is made, and cannot be recovered.
"""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, bindparam, insert, select, update

from coordinator.db.bulk import BulkUpdate, Record
from coordinator.db.schema import api_keys
from coordinator.ledger.accounts import AccountId
from protocol.clock import Entropy
from protocol.ids import ULID_ENTROPY_BYTES, new_ulid

# Says whose key it is to whoever finds one in a log, and to scanners of leaked secrets.
_KEY_MARK = "sk-capa-"
_KEY_BYTES = 32
# Enough to recognize a key in a list, too little to be of use: 238 random bits remain.
_PREFIX_CHARS = len(_KEY_MARK) + 3


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

    @property
    def remaining_nano(self) -> int | None:
        """What may still be spent; None for no limit, never negative."""
        return None if self.budget_nano is None else max(0, self.budget_nano - self.spent_nano)


_FIELDS = tuple(ApiKey.__slots__)
_COLUMNS = [api_keys.c[field] for field in _FIELDS]

_SPEND = BulkUpdate(
    update(api_keys)
    .values(spent_nano=api_keys.c.spent_nano + bindparam("amount"))
    .where(api_keys.c.id == bindparam("key")),
    ("amount", "key"),
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
    encoded = base64.urlsafe_b64encode(entropy(_KEY_BYTES)).rstrip(b"=").decode()
    secret = _KEY_MARK + encoded
    key = ApiKey(
        id=new_ulid(now_ms, entropy(ULID_ENTROPY_BYTES)),
        account=account,
        prefix=secret[:_PREFIX_CHARS],
        name=name,
        created_at_ms=now_ms,
        revoked_at_ms=None,
        budget_nano=budget_nano,
        spent_nano=0,
        requests_per_minute=requests_per_minute,
    )
    values = {field: getattr(key, field) for field in _FIELDS}
    conn.execute(insert(api_keys).values(key_hash=_hash(secret), **values))
    return secret, key


def authenticate(conn: Connection, secret: str) -> ApiKey | None:
    """The key with this secret, unless it is unknown or revoked."""
    key_hash = _hash(secret)
    query = select(api_keys.c.key_hash, *_COLUMNS).where(api_keys.c.key_hash == key_hash)
    row = conn.execute(query).first()
    # The index compares hashes, whose order says nothing of keys; this is for the last doubt.
    if row is None or not hmac.compare_digest(row[0], key_hash):
        return None
    key = _key(row[1:])
    return key if key.revoked_at_ms is None else None


def find_api_key(conn: Connection, key_id: str) -> ApiKey | None:
    row = conn.execute(select(*_COLUMNS).where(api_keys.c.id == key_id)).first()
    return None if row is None else _key(row)


def list_api_keys(conn: Connection, *, account: AccountId | None = None) -> list[ApiKey]:
    """All keys, oldest first, revoked ones too."""
    query = select(*_COLUMNS).order_by(api_keys.c.id)
    if account is not None:
        query = query.where(api_keys.c.account == account)
    return [_key(row) for row in conn.execute(query)]


def revoke_api_key(conn: Connection, key_id: str, *, now_ms: int) -> bool:
    """Nobody gets in with it any more. False if there is no such key, or it was revoked before."""
    change = (
        update(api_keys)
        .where(api_keys.c.id == key_id, api_keys.c.revoked_at_ms.is_(None))
        .values(revoked_at_ms=now_ms)
    )
    return conn.execute(change).rowcount == 1


def record_spending(key_id: str, amount_nano: int) -> Record:
    """Count a charge against a key's budget, together with the capture that made it.

    It is never refused: what was delivered is paid. A budget is enforced when money is held.
    """
    return Record(_SPEND, (amount_nano, key_id))


def _hash(secret: str) -> bytes:
    # A header may hold anything; what is no valid text cannot be a key, and hashes to no key.
    return hashlib.sha256(secret.encode(errors="surrogateescape")).digest()


def _key(row: Sequence[Any]) -> ApiKey:
    return ApiKey(*row)
