"""Accounts: opened empty, listed in pages, and what their balances mean."""

from collections.abc import Iterator

import pytest

from coordinator.db.accounts import (
    find_account,
    find_accounts,
    list_accounts,
    open_account,
    store_accounts,
)
from coordinator.db.engine import Connection
from coordinator.ledger.accounts import (
    SYSTEM_ACCOUNTS,
    Account,
    AccountId,
    AccountKind,
    SystemAccount,
    account_of,
)
from protocol.errors import RemoteProtocolError
from protocol.ids import parse_peer_id
from tests.coordinator.ledger_makers import ALICE, BOB, START_MS, memory_books

CAROL = Account(AccountId("carol"), AccountKind.CLIENT, label="Carol", created_at_ms=START_MS)


@pytest.fixture
def conn() -> Iterator[Connection]:
    with memory_books() as database, database.transaction() as conn:
        yield conn


def test_a_new_database_has_the_operators_accounts(conn: Connection) -> None:
    system = list_accounts(conn, kind=AccountKind.SYSTEM)
    without_balances = {Account(a.id, a.kind, a.may_overdraw) for a in system}
    assert without_balances == set(SYSTEM_ACCOUNTS)


def test_no_peer_can_own_a_system_account() -> None:
    for account in SYSTEM_ACCOUNTS:
        with pytest.raises(RemoteProtocolError):
            parse_peer_id(account.id)


def test_opening_an_account_again_changes_nothing(conn: Connection) -> None:
    assert open_account(conn, CAROL) == CAROL
    renamed = CAROL._replace(label="Mallory", kind=AccountKind.NODE, created_at_ms=0)
    assert open_account(conn, renamed) == CAROL
    rich = open_account(conn, Account(account_of(ALICE), AccountKind.NODE))
    assert rich.available_nano == 1_000, "and takes nobody's money"


def test_an_account_cannot_be_opened_with_money_in_it(conn: Connection) -> None:
    with pytest.raises(AssertionError, match="transfers only"):
        open_account(conn, CAROL._replace(credits_posted=1))


def test_balances_say_what_may_be_spent() -> None:
    account = Account(
        AccountId("x"),
        AccountKind.CLIENT,
        debits_pending=5,
        debits_posted=20,
        credits_pending=100,
        credits_posted=50,
    )
    assert account.posted_nano == 30
    assert account.held_nano == 5
    assert account.available_nano == 25
    assert not account.is_empty
    assert CAROL.is_empty


def test_only_accounts_that_exist_are_found(conn: Connection) -> None:
    ids = [account_of(ALICE), AccountId("ghost"), SystemAccount.ESCROW]
    assert find_accounts(conn, ids).keys() == {ALICE, SystemAccount.ESCROW}
    assert find_accounts(conn, []) == {}
    assert find_account(conn, AccountId("ghost")) is None


def test_accounts_are_listed_in_pages(conn: Connection) -> None:
    clients = list_accounts(conn, kind=AccountKind.CLIENT, limit=1)
    assert [account.id for account in clients] == [account_of(ALICE)]
    rest = list_accounts(conn, kind=AccountKind.CLIENT, after=clients[-1].id)
    assert [account.id for account in rest] == [account_of(BOB)]


def test_storing_balances_leaves_the_rest_of_an_account_alone(conn: Connection) -> None:
    open_account(conn, CAROL)
    store_accounts(conn, [CAROL._replace(credits_posted=7, label="?", created_at_ms=0)])
    assert find_account(conn, CAROL.id) == CAROL._replace(credits_posted=7)
