"""Who an API key stands for: its account, the key that signs in its name, and its limits."""

import json

import structlog

from coordinator.db.api_keys import ApiKey, authenticate
from coordinator.db.custodial_keys import find_custodial_key
from coordinator.db.engine import Connection, Database
from coordinator.db.key_routings import find_key_routing
from coordinator.gateway.caller import Caller
from coordinator.vault import Vault
from protocol.ids import PeerId

log = structlog.get_logger(__name__)


class ApiKeyDesk:
    """Looks API keys up. One read transaction each: callers cache."""

    def __init__(self, database: Database, vault: Vault) -> None:
        self._database = database
        self._vault = vault

    async def authenticate(self, secret: str) -> Caller | None:
        """None for a key that is unknown or revoked, or whose account signs for itself.

        Raises StorageError and its kin, VaultError.
        """
        found = await self._database.read(_find, secret)
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


def _find(conn: Connection, secret: str) -> tuple[ApiKey, bytes | None, str | None] | None:
    key = authenticate(conn, secret)
    if key is None:
        return None
    return key, find_custodial_key(conn, key.account), find_key_routing(conn, key.id)
