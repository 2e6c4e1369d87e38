"""Who may use a gateway beside its users: the holders of its own API keys, or, where it was started
without keys, every program of this machine."""

from coordinator.buyer_config import BuyerConfig
from coordinator.edge.errors import KeysError
from coordinator.edge.keys import GatewayKey, GatewayKeys
from coordinator.gateway.caller import Caller
from protocol.keys import SigningKey
from protocol.net.dial_policy import ALLOW_LOOPBACK, PUBLIC_ONLY
from protocol.programs.runners import Runner

LOCAL_PROGRAMS = "local"


def check_access(config: BuyerConfig, keys: GatewayKeys) -> None:
    """Raises KeysError if strangers could spend the account's money, or no program could."""
    addresses = [config.http] if config.grpc is None else [config.http, config.grpc]
    open_to_all = [address for address in addresses if not _is_local(address.host)]
    is_local = not open_to_all
    if config.no_keys and open_to_all:
        raise KeysError(
            f"without API keys everyone who reaches {open_to_all[0]} could spend this account's "
            "money: listen on 127.0.0.1, or make keys with `coordinator gateway keys create NAME` "
            "and leave --no-keys away"
        )
    if not config.no_keys and not any(key.revoked_at_ms is None for key in keys.all_keys()):
        raise KeysError(
            "this gateway has no API key yet: make one with `coordinator gateway keys create NAME`"
            + (", or start it with --no-keys for the programs of this machine" if is_local else "")
        )


def _is_local(host: str) -> bool:
    return host == "localhost" or (ALLOW_LOOPBACK.allows(host) and not PUBLIC_ONLY.allows(host))


class EdgeCallers:
    """Who callers are, by their secrets or by the ids of their keys: each buys with the gateway's
    one key."""

    def __init__(
        self, keys: GatewayKeys, signing_key: SigningKey, runner: Runner, *, no_keys: bool
    ) -> None:
        self._keys = keys
        self._signing_key = signing_key
        self._runner = runner
        self._no_keys = no_keys

    async def authenticate(self, secret: str) -> Caller | None:
        if self._no_keys:
            return Caller(LOCAL_PROGRAMS, self._signing_key)
        return self._caller(await self._runner.run_read(lambda: self._keys.authenticate(secret)))

    async def caller_of(self, api_key_id: str) -> Caller | None:
        """As a batch needs it, whose request was long ago."""
        if self._no_keys:
            is_local = api_key_id == LOCAL_PROGRAMS
            return Caller(LOCAL_PROGRAMS, self._signing_key) if is_local else None
        found = await self._runner.run_read(lambda: self._keys.find(api_key_id))
        return None if found is None or found.revoked_at_ms is not None else self._caller(found)

    def _caller(self, key: GatewayKey | None) -> Caller | None:
        if key is None:
            return None
        return Caller(
            key.id,
            self._signing_key,
            requests_per_minute=key.requests_per_minute,
            shares_account=True,
        )
