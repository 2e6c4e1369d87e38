"""The coordinator as a process: identity, books, network and gateway around `coordinator.app`."""

import signal
from collections.abc import Callable

import structlog
import trio

from coordinator.app import Coordinator, MarketRules
from coordinator.auth import ApiKeyDesk
from coordinator.db.engine import ThreadRunner, open_database
from coordinator.endpoint import Endpoint, write_endpoint
from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.metrics import Metrics
from coordinator.gateway.server import Gateway
from coordinator.local_market import LocalMarket
from coordinator.settings import Config
from coordinator.vault import Vault
from protocol.net.libp2p import Libp2pTransport
from protocol.programs.gc import settle_garbage_collection
from protocol.programs.keyfile import load_or_create_key_file
from protocol.programs.locks import hold_lock
from protocol.programs.runtime import system_runtime

log = structlog.get_logger(__name__)


async def serve(config: Config, on_ready: Callable[[Endpoint], None]) -> None:
    """Run until SIGINT or SIGTERM. Raises AlreadyRunningError, CoordinatorError, KeyFileError,
    NetError."""
    config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    refusal = (
        f"another coordinator runs with data directory {config.data_dir}: stop it, or use another "
        "--data-dir"
    )
    # Two would share a key and a database file.
    with hold_lock(config.lock_path, refusal=refusal):
        key = load_or_create_key_file(config.key_path)
        database = open_database(config.database, ThreadRunner())
        runtime = system_runtime()
        transport = Libp2pTransport(key, config.listen, announce=config.announce)
        rules = MarketRules(config.fee_bps, config.catalogue, config.client_asks_per_minute)
        coordinator = Coordinator(key, transport, database, rules, runtime)
        try:
            async with trio.open_nursery() as market:
                await market.start(coordinator.run)
                async with trio.open_nursery() as front:
                    await front.start(_cancel_on_signal, front.cancel_scope)
                    url = await front.start(_make_gateway(config, coordinator, Vault(key)).run)
                    endpoint = Endpoint(key.peer_id, transport.addresses, url)
                    write_endpoint(config.endpoint_path, endpoint)
                    settle_garbage_collection()
                    on_ready(endpoint)
                # The front has ended: requests in flight have had their answers.
                market.cancel_scope.cancel()
        finally:
            config.endpoint_path.unlink(missing_ok=True)
            database.close()


def _make_gateway(config: Config, coordinator: Coordinator, vault: Vault) -> Gateway:
    market = LocalMarket(coordinator, ApiKeyDesk(coordinator.database, vault))
    gateway_config = GatewayConfig(
        host=config.http.host,
        port=config.http.port,
        cors_origins=config.cors_origins,
        metrics_public=config.metrics_public,
    )
    return Gateway(gateway_config, market, Metrics())


async def _cancel_on_signal(
    scope: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """The first signal stops in good order; a second one is not waited for."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        task_status.started()
        async for number in signals:
            log.info("stopping", signal=signal.Signals(number).name)
            scope.cancel()
            return
