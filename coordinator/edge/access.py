"""Who may use a gateway beside its users: the holders of its own API keys, or, where it was started
without keys, every program of this machine."""

from collections.abc import Awaitable, Callable

from coordinator.buyer_config import BuyerConfig
from coordinator.edge.errors import KeysError
from coordinator.edge.keys import GatewayKeys
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


def authenticator(
    keys: GatewayKeys, signing_key: SigningKey, runner: Runner, *, no_keys: bool
) -> Callable[[str], Awaitable[Caller | None]]:
    """What `EdgeMarket` asks: every caller buys with the gateway's one key."""

    async def know_everyone(_secret: str) -> Caller:
        return Caller(LOCAL_PROGRAMS, signing_key)

    async def look_up(secret: str) -> Caller | None:
        found = await runner.run_read(lambda: keys.authenticate(secret))
        if found is None:
            return None
        return Caller(
            found.id,
            signing_key,
            requests_per_minute=found.requests_per_minute,
            shares_account=True,
        )

    return know_everyone if no_keys else look_up
