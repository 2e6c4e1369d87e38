"""Signing keys that the gateway keeps for users who only hold an API key, sealed by the caller."""

from sqlalchemy import Connection, insert, select

from coordinator.db.schema import custodial_keys
from coordinator.ledger.accounts import AccountId


def store_custodial_key(
    conn: Connection, account: AccountId, sealed_seed: bytes, *, now_ms: int
) -> None:
    """Raises ConstraintError if the account has one: replacing it would orphan its signatures."""
    row = {"account": account, "sealed_seed": sealed_seed, "created_at_ms": now_ms}
    conn.execute(insert(custodial_keys).values(row))


def find_custodial_key(conn: Connection, account: AccountId) -> bytes | None:
    """The sealed seed of the account's key, if we keep it."""
    query = select(custodial_keys.c.sealed_seed).where(custodial_keys.c.account == account)
    found: bytes | None = conn.scalar(query)
    return found
