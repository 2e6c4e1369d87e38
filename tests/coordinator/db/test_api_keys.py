"""API keys: shown once, stored as hashes, revoked for good."""

from collections.abc import Iterator
from random import Random

import pytest
from sqlalchemy import text

from coordinator.db.accounts import open_account
from coordinator.db.api_keys import (
    ApiKey,
    authenticate,
    create_api_key,
    list_api_keys,
    revoke_api_key,
    store_spending,
)
from coordinator.db.engine import Connection
from coordinator.errors import ConstraintError
from coordinator.ledger.accounts import Account, AccountId, AccountKind, account_of
from tests.coordinator.ledger_makers import ALICE, BOB, START_MS, memory_books

ENTROPY = Random(3).randbytes


@pytest.fixture
def conn() -> Iterator[Connection]:
    with memory_books() as database, database.transaction() as conn:
        yield conn


def make_key(
    conn: Connection, account: str = ALICE, *, budget_nano: int | None = None
) -> tuple[str, ApiKey]:
    return create_api_key(
        conn,
        AccountId(account),
        "laptop",
        now_ms=START_MS,
        entropy=ENTROPY,
        budget_nano=budget_nano,
        requests_per_minute=60,
    )


def test_a_key_lets_its_owner_in(conn: Connection) -> None:
    secret, key = make_key(conn)
    assert authenticate(conn, secret) == key
    assert key.account == account_of(ALICE)
    assert list_api_keys(conn) == [key]


def test_the_secret_is_long_random_and_recognizable(conn: Connection) -> None:
    secrets = {make_key(conn)[0] for _ in range(20)}
    assert len(secrets) == 20
    for secret in secrets:
        assert secret.startswith("sk-capa-")
        assert len(secret) == len("sk-capa-") + 43, "256 bits"


def test_the_secret_is_not_in_the_database(conn: Connection) -> None:
    secret, key = make_key(conn)
    row = conn.execute(text("SELECT * FROM api_keys")).one()
    stored = b"|".join(v if isinstance(v, bytes) else str(v).encode() for v in row)
    assert key.prefix.encode() in stored
    assert secret.encode() not in stored
    assert secret.removeprefix("sk-capa-")[3:11].encode() not in stored


@pytest.mark.parametrize("wrong", ["", "sk-capa-", "sk-capa-" + "A" * 43, "\udcff\ud800"[:1], "ü"])
def test_a_wrong_secret_lets_nobody_in(conn: Connection, wrong: str) -> None:
    make_key(conn)
    assert authenticate(conn, wrong) is None


def test_a_key_with_one_letter_changed_lets_nobody_in(conn: Connection) -> None:
    secret, _ = make_key(conn)
    changed = secret[:-1] + ("A" if secret[-1] != "A" else "B")
    assert authenticate(conn, changed) is None


def test_a_revoked_key_lets_nobody_in(conn: Connection) -> None:
    secret, key = make_key(conn)
    assert revoke_api_key(conn, key.id, now_ms=START_MS + 5)
    assert authenticate(conn, secret) is None
    assert not revoke_api_key(conn, key.id, now_ms=START_MS + 9), "once is enough"
    (found,) = list_api_keys(conn)
    assert found.revoked_at_ms == START_MS + 5


def test_revoking_an_unknown_key_says_so(conn: Connection) -> None:
    assert not revoke_api_key(conn, "0" * 26, now_ms=START_MS)


def test_keys_are_listed_by_account(conn: Connection) -> None:
    _, first = make_key(conn)
    _, other = make_key(conn, BOB)
    assert list_api_keys(conn, account=AccountId(ALICE)) == [first]
    assert {key.id for key in list_api_keys(conn)} == {first.id, other.id}


def test_a_key_needs_an_account() -> None:
    with memory_books() as database:
        with pytest.raises(ConstraintError), database.transaction() as conn:
            make_key(conn, "nobody")
        with database.transaction() as conn:
            open_account(conn, Account(AccountId("nobody"), AccountKind.CLIENT))
            make_key(conn, "nobody")


def test_spending_adds_up_and_may_pass_the_budget(conn: Connection) -> None:
    """What was delivered is paid; the budget stops the next hold, not this capture."""
    _, key = make_key(conn, budget_nano=100)
    store_spending(conn, {key.id: 30})
    store_spending(conn, {key.id: 90})
    (spent,) = list_api_keys(conn)
    assert spent.spent_nano == 120


def test_spending_of_an_unknown_key_is_refused(conn: Connection) -> None:
    with pytest.raises(ConstraintError):
        store_spending(conn, {"0" * 26: 1})
