"""Who an API key stands for: its account, the key that signs in its name, and its limits."""

import json

import structlog

from coordinator.db.api_keys import ApiKey, authenticate, find_api_key
from coordinator.db.custodial_keys import find_custodial_key
from coordinator.db.engine import Connection, Database
from coordinator.db.key_routings import find_key_routing
from coordinator.gateway.caller import Caller
from coordinator.vault import Vault
from protocol.ids import PeerId

log = structlog.get_logger(__name__)

# A key, the sealed seed of its account, and what it says of routing.
_Found = tuple[ApiKey, bytes | None, str | None]


class ApiKeyService:
    """Looks API keys up. One read transaction each: callers cache."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def authenticate(self, secret: str) -> Caller | None:
        """None for a key that is unknown or revoked, or whose account signs for itself.

        Raises StorageError and its kin, VaultError.
        """
        return self._caller(await self._database.read(_find, secret))

    async def caller_of(self, api_key_id: str) -> Caller | None:
        """The same for a key by its id: for work that goes on when its request has ended."""
        return self._caller(await self._database.read(_find_by_id, api_key_id))

    def _caller(self, found: _Found | None) -> Caller | None:
        if found is None:
            return None
        key, sealed_seed, provider = found
        if sealed_seed is None:
            log.warning("api_key_without_custody", api_key_id=key.id, account=key.account)
            return None
        return Caller(
            key_id=key.id,
            signing_key=self._vault.open(PeerId(key.account), sealed_seed),
            requests_per_minute=key.requests_per_minute,
            provider=json.loads(provider) if provider is not None else {},
        )


def _find(conn: Connection, secret: str) -> _Found | None:
    key = authenticate(conn, secret)
    return None if key is None else _with_keys(conn, key)


def _find_by_id(conn: Connection, api_key_id: str) -> _Found | None:
    key = find_api_key(conn, api_key_id)
    is_good = key is not None and key.revoked_at_ms is None
    return _with_keys(conn, key) if key is not None and is_good else None


def _with_keys(conn: Connection, key: ApiKey) -> _Found:
    return key, find_custodial_key(conn, key.account), find_key_routing(conn, key.id)
