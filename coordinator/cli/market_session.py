"""A command's own presence in the market: a key, a connection to a coordinator, a client."""

import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from coordinator.buyer.client import MarketClient
from coordinator.buyer.remote import RemoteLeaser
from coordinator.buyer_config import BuyingConfig
from coordinator.cli.options import CommandError, command_log_level
from coordinator.endpoint import Endpoint, read_endpoint
from protocol.envelope import open_envelope
from protocol.errors import RemoteProtocolError
from protocol.ids import parse_peer_id
from protocol.keys import SigningKey
from protocol.messages import Task
from protocol.net.dial_policy import (
    ALLOW_LOOPBACK,
    LOOPBACK,
    PUBLIC_ONLY,
    DialPolicy,
    parse_networks,
)
from protocol.net.pool import StreamPool
from protocol.offers import NodeOffer
from protocol.programs.commands import UsageError
from protocol.programs.keyfile import load_or_create_key_file
from protocol.programs.log import configure_logging
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
        raise CommandError(f"no node offers {model!r} now: `models` lists what is offered")


def buyer_key(config: BuyingConfig, path: Path | None) -> SigningKey:
    return load_or_create_key_file(path if path is not None else config.client_key_path)


@asynccontextmanager
async def open_market(
    config: BuyingConfig, *, at: str | None, key_path: Path | None
) -> AsyncIterator[MarketSession]:
    """Join the market of the coordinator at `at`, or of the one that runs on this machine."""
    from protocol.net.libp2p import Libp2pTransport  # half a second, which others need not pay

    address, policy = find_coordinator(config, at)
    try:
        coordinator = parse_peer_id(address.rpartition("/p2p/")[2])
    except RemoteProtocolError:
        raise UsageError(f"{address!r} does not end in /p2p/ and a peer id") from None
    key = buyer_key(config, key_path)
    transport = Libp2pTransport(key, (), policy=policy)
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
async def open_command_market(
    config: BuyingConfig, *, at: str | None, key_path: Path | None
) -> AsyncIterator[MarketSession]:
    """`open_market` for a process that is one command: what is logged goes to stderr."""
    configure_logging(level=command_log_level(config), log_format=config.log_format)
    async with open_market(config, at=at, key_path=key_path) as session:
        yield session


@asynccontextmanager
async def until_interrupted(
    handles: Callable[[], bool] = lambda: False,
) -> AsyncIterator[None]:
    """The first Ctrl-C that `handles` does not deal with cancels the block, and KeyboardInterrupt
    is raised when that has ended: around it, what was bought is signed for. Left to itself, the
    interrupt would hit any of our tasks."""
    interrupted = False
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def watch() -> None:
                nonlocal interrupted
                async for number in signals:
                    if number != signal.SIGINT or not handles():
                        break
                interrupted = True
                nursery.cancel_scope.cancel()

            nursery.start_soon(watch)
            yield
            nursery.cancel_scope.cancel()
    if interrupted:
        raise KeyboardInterrupt


def find_coordinator(config: BuyingConfig, at: str | None) -> tuple[str, DialPolicy]:
    """Its address, and where its nodes may be: where it goes itself if it runs here (also if only a
    flag of its start says so), and on this machine if its address is.

    Raises CommandError if `at` is None and no coordinator runs with this data directory.
    """
    if at is None and config.coordinators:
        at = config.coordinators[0]
    policy = config.dial_policy
    if at is None:
        endpoint = _local_endpoint(config)
        at = endpoint.addresses[0]
        nearby = parse_networks(endpoint.dial_private)
        policy = replace(policy, networks=(*policy.networks, *nearby))
    policy = policy.with_trusted([at])
    host = at.split("/")[2] if at.count("/") > 2 else ""
    if ALLOW_LOOPBACK.allows(host) and not PUBLIC_ONLY.allows(host):
        policy = replace(policy, networks=(*policy.networks, *LOOPBACK))
    return at, policy


def _local_endpoint(config: BuyingConfig) -> Endpoint:
    endpoint = read_endpoint(config.endpoint_path)
    if endpoint is None or not endpoint.addresses:
        raise CommandError(
            f"no coordinator runs with data directory {config.endpoint_path.parent}: start one, or "
            "name a market elsewhere with --coordinator"
        )
    return endpoint
