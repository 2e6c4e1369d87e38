"""The coordinator as a process: identity, books, network and gateway around `coordinator.app`."""

from collections.abc import Callable
from pathlib import Path

from coordinator.app import Coordinator, MarketRules
from coordinator.batches.blobs import SealedFolder
from coordinator.batches.book_rows import BookFiling, BookLeftovers
from coordinator.batches.service import BatchBounds, BatchService
from coordinator.batches.usage import DAY_S, GIB, FileBounds
from coordinator.clock_check import check_clock
from coordinator.db.engine import ThreadRunner, only_coordinator, open_database
from coordinator.db.heads import store_head
from coordinator.endpoint import Endpoint, write_endpoint
from coordinator.errors import CoordinatorError
from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.metrics import Metrics
from coordinator.gateway.server import Gateway
from coordinator.in_process.api_keys import ApiKeyService
from coordinator.in_process.market import LocalMarket, list_known_models
from coordinator.leasing.lease_server import ROLE
from coordinator.settings import CoordinatorConfig
from coordinator.vault import Vault
from protocol.net.libp2p import Libp2pTransport
from protocol.net.relay_places import RelayLimits
from protocol.programs.keyfile import load_or_create_key_file
from protocol.programs.locks import hold_lock
from protocol.programs.process_memory import settle_garbage_collection
from protocol.programs.runtime import Runtime, system_runtime
from protocol.programs.sharing.blob_server import BlobServer
from protocol.programs.sharing.model_folder import ModelFolder
from protocol.programs.shutdown import StopSignals, open_stages, run_until_signal
from protocol.services import BLOB_PROTOCOL

# For handing in what our own client has been charged, and closing the books.
MARKET_STOP_WITHIN_S = 15.0


async def serve(
    config: CoordinatorConfig, on_ready: Callable[[Endpoint], None], *, accept_clock: bool = False
) -> None:
    """Run until SIGINT or SIGTERM; streams then have `drain_s` seconds, unless a second signal cuts
    them. `accept_clock` starts although the machine's clock contradicts the books.

    Raises AlreadyRunningError, CoordinatorError, KeyFileError, NetError.
    """
    config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    refusal = (
        f"another coordinator runs with data directory {config.data_dir}: stop it, or use another "
        "--data-dir"
    )
    # Two in one folder would share a key, two on one database its holds.
    with (
        hold_lock(config.lock_path, refusal=refusal),
        only_coordinator(config.database),
    ):
        key = load_or_create_key_file(config.key_path)
        database = open_database(config.database, ThreadRunner())
        runtime = system_runtime()
        transport = Libp2pTransport(
            key,
            config.listen,
            announce=config.announce,
            policy=config.dial_policy,
            relay=RelayLimits() if config.relay else None,
        )
        if config.share_store is not None:
            transport.handle(BLOB_PROTOCOL, _blob_server(config.share_store, config).handle)
        coordinator = Coordinator(key, transport, database, _market_rules(config), runtime)
        known = await database.read(list_known_models, now_ms=runtime.clock.now_ms())
        keys = ApiKeyService(database, Vault(key))
        local = LocalMarket(coordinator, keys, known=known)
        batches = _make_batches(config, coordinator, local, keys, runtime)
        gateway = _make_gateway(config, local, batches)

        async def body(signals: StopSignals) -> None:
            """The gateway stops first, so that streams end, then batches, which the next process
            takes up again, then the market, which hands in all receipts before its books close."""
            if not accept_clock:
                await database.read(check_clock, now_ms=runtime.clock.now_ms())
            async with open_stages() as stages:
                await stages.start(
                    "market", coordinator.run, ask=coordinator.stop, within_s=MARKET_STOP_WITHIN_S
                )
                await stages.start("batches", batches.run)
                url = await stages.start("gateway", gateway.run)
                endpoint = Endpoint(key.peer_id, transport.addresses, url, config.dial_private)
                write_endpoint(config.endpoint_path, endpoint)
                settle_garbage_collection()
                on_ready(endpoint)
                signals.is_up = True
                try:
                    await signals.asked.wait()
                    await gateway.drain(within_s=config.drain_s)
                finally:
                    gateway.cut()
            # Only here: books that could not be opened, because they are damaged, are not signed.
            await database.write(store_head, key, now_ms=runtime.clock.now_ms())

        try:
            await run_until_signal(body)
        finally:
            config.endpoint_path.unlink(missing_ok=True)
            database.close()


def _market_rules(config: CoordinatorConfig) -> MarketRules:
    return MarketRules(
        config.fee_bps,
        config.catalogue,
        config.client_asks_per_minute,
        leases_ahead=config.lease_pool,
    )


def _blob_server(store: Path, config: CoordinatorConfig) -> BlobServer:
    """Raises CoordinatorError."""
    if not ModelFolder(store).path.is_dir():
        raise CoordinatorError(
            f"{store} is no store of models (`share_store`): fill it with "
            f"`capanode models pull NAME --model-store {store}`"
        )
    return BlobServer.of_store(store, role=ROLE, mbit_per_s=config.share_mbit_per_s)


def _make_batches(
    config: CoordinatorConfig,
    coordinator: Coordinator,
    local: LocalMarket,
    keys: ApiKeyService,
    runtime: Runtime,
) -> BatchService:
    database = coordinator.database
    return BatchService(
        BookFiling(database),
        SealedFolder(config.files_dir, coordinator.key, runtime.entropy),
        local,
        BookLeftovers(database, coordinator.lease_service, keys, runtime.clock),
        keys,
        runtime.steadied(),
        bounds=BatchBounds(_file_bounds(config)),
    )


def _file_bounds(config: CoordinatorConfig) -> FileBounds:
    return FileBounds(
        account_bytes_max=config.files_per_account_gib * GIB,
        all_bytes_max=config.files_max_gib * GIB,
        lifetime_s=config.files_keep_days * DAY_S,
    )


def _make_gateway(config: CoordinatorConfig, market: LocalMarket, batches: BatchService) -> Gateway:
    gateway_config = GatewayConfig(
        host=config.http.host,
        port=config.http.port,
        descriptor=config.http.descriptor,
        grpc_host=config.grpc.host if config.grpc is not None else "",
        grpc_port=config.grpc.port if config.grpc is not None else None,
        cors_origins=config.cors_origins,
        metrics_public=config.metrics_public,
    )
    return Gateway(gateway_config, market, Metrics(), filing=batches)
