"""Accounts as stored. Balances change only together with transfers (`coordinator.db.transfers`)."""

from collections.abc import Collection, Iterator, Sequence
from typing import Any

from sqlalchemy import Connection, select

from coordinator.db.bulk import BulkInsert, BulkQuery
from coordinator.db.digests import row_digest
from coordinator.db.schema import accounts
from coordinator.ledger.accounts import SYSTEM_ACCOUNTS, Account, AccountId, AccountKind

_SYSTEM = {account.id: account for account in SYSTEM_ACCOUNTS}

_COLUMNS = [accounts.c[field] for field in Account._fields]
_BALANCES = ("debits_pending", "debits_posted", "credits_pending", "credits_posted")

# Enum members look up faster in a dict than by calling their class.
_KINDS = {kind.value: kind for kind in AccountKind}

_SELECT_MANY = BulkQuery(select(*_COLUMNS), accounts.c.id)
_OPEN = BulkInsert(
    accounts, (*Account._fields, "digest"), on_conflict="ON CONFLICT (id) DO NOTHING"
)
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
    _OPEN.run(conn, [(*account, _digest(account))])
    found = find_account(conn, account.id)
    assert found is not None
    return found


def store_accounts(conn: Connection, changed: Sequence[Account]) -> None:
    """Write the balances of accounts that were read in this same transaction, or are new."""
    _STORE.run(conn, changed)


def damaged_accounts(conn: Connection) -> Iterator[AccountId]:
    """Accounts whose names and flags are not those that were written. Balances are not among them:
    an audit adds them up. An account that a posting opened, a node's, has no digest."""
    for digest, *row in conn.execute(select(accounts.c.digest, *_COLUMNS)):
        account = _account(row)
        if account.id in _SYSTEM:
            is_good = account.may_overdraw == _SYSTEM[account.id].may_overdraw
        elif digest is not None:
            is_good = digest == _digest(account)
        else:
            is_good = not account.may_overdraw
        if not is_good:
            yield account.id


def _digest(account: Account) -> bytes:
    return row_digest(
        "accounts",
        account.id,
        account.kind.value,
        int(account.may_overdraw),
        account.label,
        account.created_at_ms,
    )


def _account(row: Sequence[Any]) -> Account:
    account_id, kind, may_overdraw, *rest = row
    return Account(account_id, _KINDS[kind], may_overdraw == 1, *rest)
