"""Accounts as stored. Balances change only together with transfers (`coordinator.db.transfers`)."""

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Connection, select, update

from coordinator.db.bulk import BulkInsert, BulkQuery
from coordinator.db.schema import accounts
from coordinator.ledger.accounts import Account, AccountId, AccountKind

_COLUMNS = [accounts.c[field] for field in Account._fields]
_BALANCES = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")

# Enum members look up faster in a dict than by calling their class.
_KINDS = {kind.value: kind for kind in AccountKind}

_SELECT_MANY = BulkQuery(select(*_COLUMNS), accounts.c.id)
_OPEN = BulkInsert(accounts, Account._fields, on_conflict="ON CONFLICT (id) DO NOTHING")
_STORE = BulkInsert(
    accounts,
    Account._fields,
    on_conflict="ON CONFLICT (id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in _BALANCES),
)


def find_account(conn: Connection, account_id: AccountId) -> Account | None:
    return find_accounts(conn, [account_id]).get(account_id)


def find_accounts(conn: Connection, ids: Collection[AccountId]) -> dict[AccountId, Account]:
    """Those of `ids` that exist."""
    return {row[0]: _account(row) for row in _SELECT_MANY.select(conn, ids)}


def list_accounts(
    conn: Connection,
    *,
    kind: AccountKind | None = None,
    after: AccountId | None = None,
    limit: int = 100,
) -> list[Account]:
    """One page in order of ids, starting behind `after`."""
    query = select(*_COLUMNS).order_by(accounts.c.id).limit(limit)
    if kind is not None:
        query = query.where(accounts.c.kind == kind)
    if after is not None:
        query = query.where(accounts.c.id > after)
    return [_account(row) for row in conn.execute(query)]


def open_account(conn: Connection, account: Account) -> Account:
    """Open an account with no money in it. One that exists stays as it is, and is returned."""
    assert account.is_empty, "money enters by transfers only"
    _OPEN.run(conn, [account])
    found = find_account(conn, account.id)
    assert found is not None
    return found


def rename_account(conn: Connection, account_id: AccountId, label: str) -> bool:
    """Give an account its owner's name. False if there is no such account."""
    change = update(accounts).where(accounts.c.id == account_id).values(label=label)
    return conn.execute(change).rowcount == 1


def store_accounts(conn: Connection, changed: Sequence[Account]) -> None:
    """Write the balances of accounts that were read in this same transaction, or are new."""
    _STORE.run(conn, changed)


def _account(row: Sequence[Any]) -> Account:
    account_id, kind, may_overdraw, *rest = row
    return Account(account_id, _KINDS[kind], may_overdraw == 1, *rest)
