"""From an API key to the account that it spends and the key that signs for it."""

import random
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from coordinator.accounts import create_account
from coordinator.db.api_keys import create_api_key, revoke_api_key
from coordinator.db.engine import Database, InlineRunner, open_database
from coordinator.db.key_routings import store_key_routing
from coordinator.in_process.api_keys import ApiKeyService
from coordinator.ledger.accounts import Account, account_of
from coordinator.vault import Vault, VaultError
from protocol.keys import SigningKey
from tests.clocks import HandClock
from tests.coordinator.market_makers import NOW_MS

OWN = SigningKey(bytes(32))
ENTROPY = random.Random(7).randbytes


@dataclass
class Books:
    database: Database
    vault: Vault

    def account(self, name: str, *, peer_id: str | None = None) -> Account:
        with self.database.transaction() as conn:
            return create_account(
                conn,
                name,
                peer_id=peer_id,
                vault=self.vault,
                clock=HandClock(NOW_MS),
                entropy=ENTROPY,
            )

    def key(self, account: Account, **limits: int) -> tuple[str, str]:
        with self.database.transaction() as conn:
            secret, key = create_api_key(
                conn, account.id, "test", now_ms=NOW_MS, entropy=ENTROPY, **limits
            )
        return secret, key.id


@pytest.fixture
def books() -> Iterator[Books]:
    database = open_database("sqlite://", InlineRunner())
    yield Books(database, Vault(OWN))
    database.close()


async def test_a_key_stands_for_its_account(books: Books) -> None:
    account = books.account("ada")
    secret, key_id = books.key(account, requests_per_minute=60)
    caller = await ApiKeyService(books.database, books.vault).authenticate(secret)
    assert caller is not None
    assert account_of(caller.signing_key.peer_id) == account.id
    assert (caller.key_id, caller.requests_per_minute) == (key_id, 60)


async def test_a_key_without_limits_has_none(books: Books) -> None:
    secret, _ = books.key(books.account("ada"))
    caller = await ApiKeyService(books.database, books.vault).authenticate(secret)
    assert caller is not None
    assert caller.requests_per_minute is None


async def test_strangers_and_revoked_keys_are_nobody(books: Books) -> None:
    service = ApiKeyService(books.database, books.vault)
    secret, key_id = books.key(books.account("ada"))
    assert await service.authenticate(secret + "x") is None
    assert await service.authenticate("") is None
    with books.database.transaction() as conn:
        assert revoke_api_key(conn, key_id, now_ms=NOW_MS)
    assert await service.authenticate(secret) is None


async def test_an_account_that_signs_for_itself_has_no_api_keys(books: Books) -> None:
    owner = SigningKey(bytes(31) + b"o")
    secret, _ = books.key(books.account("ada", peer_id=owner.peer_id))
    assert await ApiKeyService(books.database, books.vault).authenticate(secret) is None


async def test_another_coordinators_key_opens_nothing(books: Books) -> None:
    secret, _ = books.key(books.account("ada"))
    stranger = Vault(SigningKey(bytes(31) + b"s"))
    with pytest.raises(VaultError):
        await ApiKeyService(books.database, stranger).authenticate(secret)


async def test_a_key_brings_what_it_says_of_routing(books: Books) -> None:
    secret, key_id = books.key(books.account("ada"))
    with books.database.transaction() as conn:
        store_key_routing(conn, key_id, '{"zdr": true}')
    caller = await ApiKeyService(books.database, books.vault).authenticate(secret)
    assert caller is not None
    assert caller.provider == {"zdr": True}
