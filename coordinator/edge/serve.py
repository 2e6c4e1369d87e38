"""The gateway beside its users as a process: identity, network, coordinators and HTTP."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from coordinator.batches.blobs import SealedFolder
from coordinator.batches.service import BatchService
from coordinator.buyer.client import MarketClient
from coordinator.buyer.leaser import Leaser
from coordinator.buyer.remote import RemoteLeaser
from coordinator.buyer_config import BuyerConfig
from coordinator.edge.access import EdgeCallers, check_access
from coordinator.edge.branch import Branch
from coordinator.edge.budgets import BudgetLeaser, Budgets
from coordinator.edge.errors import EdgeError
from coordinator.edge.filing import EdgeFiling
from coordinator.edge.keys import GatewayKeys
from coordinator.edge.leftovers import EdgeLeftovers
from coordinator.edge.market import EdgeMarket
from coordinator.edge.records import EdgeRecords
from coordinator.edge.round_trips import RoundTrips
from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.metrics import Metrics
from coordinator.gateway.server import Gateway
from protocol.errors import RemoteProtocolError
from protocol.ids import PeerId, parse_peer_id
from protocol.keys import SigningKey
from protocol.net.libp2p import Libp2pTransport
from protocol.net.pool import StreamPool
from protocol.net.transport import Transport
from protocol.programs.keyfile import load_or_create_key_file
from protocol.programs.locks import hold_lock
from protocol.programs.process_memory import settle_garbage_collection
from protocol.programs.runtime import Runtime, system_runtime
from protocol.programs.shutdown import Stages, StopSignals, open_stages, run_until_signal
from protocol.services import JOB_PROTOCOL, LEASE_PROTOCOL

ROLE = "client"
# For handing in what was signed last.
SETTLED_WITHIN_S = 5.0


@dataclass(frozen=True, slots=True)
class EdgeEndpoint:
    """What a gateway says when it is ready. `peer_id` is whose account pays."""

    peer_id: PeerId
    http: str
    coordinators: tuple[str, ...]
    needs_key: bool


class Edge:
    """Everything but HTTP and the process: tests put it on an in-memory network."""

    def __init__(
        self,
        key: SigningKey,
        transport: Transport,
        coordinators: tuple[str, ...],
        keys: GatewayKeys,
        runtime: Runtime,
        *,
        files_dir: Path,
        no_keys: bool,
        leases_ahead: int = 0,
    ) -> None:
        runtime = runtime.steadied()
        self._transport = transport
        self._lease_pool, self._job_pool = (
            StreamPool(transport, protocol, role=ROLE, rng=runtime.child_rng())
            for protocol in (LEASE_PROTOCOL, JOB_PROTOCOL)
        )
        callers = EdgeCallers(keys, key, runtime.runner, no_keys=no_keys)
        remotes: list[RemoteLeaser] = []
        self.market = EdgeMarket(
            transport, callers.authenticate, EdgeRecords(remotes, keys, runtime.runner)
        )
        self.batches = BatchService(
            EdgeFiling(files_dir / "rows.sqlite", runtime.runner),
            SealedFolder(files_dir / "sealed", key, runtime.entropy),
            self.market,
            EdgeLeftovers(remotes, key, runtime.clock),
            callers,
            runtime,
        )
        self.round_trips = RoundTrips(transport, self._job_pool, self.market)
        budgets = None if no_keys else Budgets(keys, runtime.runner, clock=runtime.clock)
        for address in coordinators:
            remote = RemoteLeaser(
                self._lease_pool,
                read_coordinator(address),
                addresses=(address,),
                round_trips=self.round_trips.advice,
            )
            remotes.append(remote)
            leaser: Leaser = remote if budgets is None else BudgetLeaser(remote, budgets)
            client = MarketClient(
                self._job_pool,
                leaser,
                clock=runtime.clock,
                entropy=runtime.entropy,
                leases_ahead=leases_ahead,
            )
            self.market.branches.append(
                Branch(
                    transport, leaser, client, address=address, on_change=self.market.note_change
                )
            )

    async def start(self, stages: Stages) -> None:
        """Start all parts, in order. A coordinator that is away is waited for while we serve."""
        for part in (self._transport, self._lease_pool, self._job_pool):
            await stages.start("network", part.run)
        for branch in self.market.branches:
            await stages.start("network", branch.client.run)
        for branch in self.market.branches:
            await stages.start("lists", branch.run)
        await stages.start("lists", self.round_trips.run)
        await stages.start("batches", self.batches.run)

    async def wait_settled(self) -> None:
        for branch in self.market.branches:
            await branch.client.wait_settled(within_s=SETTLED_WITHIN_S)


async def serve_edge(config: BuyerConfig, on_ready: Callable[[EdgeEndpoint], None]) -> None:
    """Run until SIGINT or SIGTERM; streams then have `drain_s` seconds, unless a second signal cuts
    them.

    Raises AlreadyRunningError, EdgeError, KeyFileError, NetError.
    """
    config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    refusal = (
        f"another gateway runs with data directory {config.data_dir}: stop it, or use another "
        "--data-dir"
    )
    with hold_lock(config.lock_path, refusal=refusal):
        keys = GatewayKeys(config.gateway_keys_path)
        check_access(config, keys)
        key = load_or_create_key_file(config.identity)
        transport = Libp2pTransport(key, (), policy=config.dial_policy)
        edge = Edge(
            key,
            transport,
            config.coordinators,
            keys,
            system_runtime(),
            files_dir=config.files_dir,
            no_keys=config.no_keys,
            leases_ahead=config.lease_pool,
        )
        gateway = Gateway(_gateway_config(config), edge.market, Metrics(), filing=edge.batches)

        async def body(signals: StopSignals) -> None:
            async with open_stages() as stages:
                await edge.start(stages)
                url = await stages.start("gateway", gateway.run)
                settle_garbage_collection()
                on_ready(EdgeEndpoint(key.peer_id, url, config.coordinators, not config.no_keys))
                signals.is_up = True
                try:
                    await signals.asked.wait()
                    await gateway.drain(within_s=config.drain_s)
                finally:
                    gateway.cut()
                await edge.wait_settled()

        await run_until_signal(body)


def read_coordinator(address: str) -> PeerId:
    """Raises EdgeError."""
    try:
        return parse_peer_id(address.rpartition("/p2p/")[2])
    except RemoteProtocolError:
        raise EdgeError(f"{address!r} does not end in /p2p/ and a peer id") from None


def _gateway_config(config: BuyerConfig) -> GatewayConfig:
    return GatewayConfig(
        host=config.http.host,
        port=config.http.port,
        descriptor=config.http.descriptor,
        grpc_host=config.grpc.host if config.grpc is not None else "",
        grpc_port=config.grpc.port if config.grpc is not None else None,
        cors_origins=config.cors_origins,
        metrics_public=config.metrics_public,
        needs_key=not config.no_keys,
    )
