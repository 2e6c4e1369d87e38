"""Signing keys that the gateway keeps for users who only hold an API key, sealed by the caller."""

from collections.abc import Iterator

from sqlalchemy import Connection, insert, select

from coordinator.db.digests import row_digest
from coordinator.db.schema import custodial_keys
from coordinator.ledger.accounts import AccountId


def store_custodial_key(
    conn: Connection, account: AccountId, sealed_seed: bytes, *, now_ms: int
) -> None:
    """Raises ConstraintError if the account has one: replacing it would orphan its signatures."""
    row = {"account": account, "sealed_seed": sealed_seed, "created_at_ms": now_ms}
    digest = row_digest("custodial_keys", *row.values())
    conn.execute(insert(custodial_keys).values(digest=digest, **row))


def find_custodial_key(conn: Connection, account: AccountId) -> bytes | None:
    """The sealed seed of the account's key, if we keep it."""
    query = select(custodial_keys.c.sealed_seed).where(custodial_keys.c.account == account)
    found: bytes | None = conn.scalar(query)
    return found


def damaged_custodial_keys(conn: Connection) -> Iterator[str]:
    """Accounts whose sealed key is not the one that was stored."""
    columns = custodial_keys.c
    query = select(columns.digest, columns.account, columns.sealed_seed, columns.created_at_ms)
    for digest, *values in conn.execute(query):
        if digest != row_digest("custodial_keys", *values):
            yield values[0]
