"""A command's own presence in the market: a key, a connection to a coordinator, a client."""

import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from coordinator.buyer.client import MarketClient
from coordinator.buyer.remote import RemoteLeaser
from coordinator.cli.options import CommandError
from coordinator.endpoint import read_endpoint
from coordinator.settings import CoordinatorConfig
from protocol.envelope import open_envelope
from protocol.errors import RemoteProtocolError
from protocol.ids import parse_peer_id
from protocol.keys import SigningKey
from protocol.messages import Task
from protocol.net.dial_policy import ALLOW_LOOPBACK, LOOPBACK, PUBLIC_ONLY, DialPolicy
from protocol.net.pool import StreamPool
from protocol.offers import NodeOffer
from protocol.programs.keyfile import load_or_create_key_file
from protocol.programs.runtime import system_runtime
from protocol.services import JOB_PROTOCOL, LEASE_PROTOCOL, NodesAsk

ROLE = "client"
CONNECT_WITHIN_S = 10.0


@dataclass(frozen=True, slots=True)
class MarketSession:
    key: SigningKey
    leaser: RemoteLeaser
    client: MarketClient

    async def task_of(self, model: str) -> Task:
        """What the model does, as its nodes say. Raises CommandError if none has it."""
        page = await self.leaser.nodes(NodesAsk(model))
        for summary in page.nodes:
            for offered in open_envelope(summary.offer, NodeOffer).message.models:
                if model in (offered.name, offered.manifest_digest):
                    return offered.task
        raise CommandError(
            f"no node offers {model!r} now: `coordinator nodes` lists what is offered"
        )


def buyer_key(config: CoordinatorConfig, path: Path | None) -> SigningKey:
    return load_or_create_key_file(path if path is not None else config.client_key_path)


@asynccontextmanager
async def open_market(
    config: CoordinatorConfig, *, at: str | None, key_path: Path | None
) -> AsyncIterator[MarketSession]:
    """Join the market of the coordinator at `at`, or of the one that runs on this machine."""
    from protocol.net.libp2p import Libp2pTransport  # half a second, which others need not pay

    address = at if at is not None else _local_address(config)
    try:
        coordinator = parse_peer_id(address.rpartition("/p2p/")[2])
    except RemoteProtocolError:
        raise CommandError(f"{address!r} does not end in /p2p/ and a peer id") from None
    key = buyer_key(config, key_path)
    transport = Libp2pTransport(key, (), policy=_policy(config, address))
    runtime = system_runtime().steadied()
    lease_pool, job_pool = (
        StreamPool(transport, protocol, role=ROLE, rng=runtime.rng)
        for protocol in (LEASE_PROTOCOL, JOB_PROTOCOL)
    )
    leaser = RemoteLeaser(lease_pool, coordinator, addresses=(address,))
    client = MarketClient(job_pool, leaser, clock=runtime.clock, entropy=runtime.entropy)
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run)
        await nursery.start(lease_pool.run)
        await nursery.start(job_pool.run)
        await nursery.start(client.run)
        await transport.connect(address, timeout_s=CONNECT_WITHIN_S)
        try:
            yield MarketSession(key, leaser, client)
        finally:
            # Also of a command that ends early: it signs for what it got.
            with trio.CancelScope(shield=True):
                await client.wait_settled()
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def until_interrupted() -> AsyncIterator[None]:
    """The first Ctrl-C cancels the block and raises KeyboardInterrupt when that has ended: around
    it, what was bought is signed for. Left to itself, the interrupt would hit any of our tasks."""
    interrupted = False
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal interrupted
                await anext(signals)
                interrupted = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            yield
            nursery.cancel_scope.cancel()
    if interrupted:
        raise KeyboardInterrupt


def _policy(config: CoordinatorConfig, coordinator: str) -> DialPolicy:
    """Where the nodes of this coordinator may be: also on this machine, if it is here itself."""
    policy = config.dial_policy.with_trusted([coordinator])
    host = coordinator.split("/")[2] if coordinator.count("/") > 2 else ""
    if ALLOW_LOOPBACK.allows(host) and not PUBLIC_ONLY.allows(host):
        return replace(policy, networks=(*policy.networks, *LOOPBACK))
    return policy


def _local_address(config: CoordinatorConfig) -> str:
    endpoint = read_endpoint(config.endpoint_path)
    if endpoint is None or not endpoint.addresses:
        raise CommandError(
            f"no coordinator runs with data directory {config.data_dir}: start one, or name one "
            "with --coordinator"
        )
    return endpoint.addresses[0]
