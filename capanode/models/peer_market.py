"""Peers to ask for a model: those that the operator names, the coordinators that the configuration
lists, and the nodes that offer it in their markets. The asker has a key of its own for each pull,
and listens nowhere."""

import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median_low
from typing import TypeVar

import structlog
import trio

from capanode.models.progress import ProgressCallback
from capanode.models.sources_peer import PEERS_MAX, PeerAddress, PeerDownload
from protocol.envelope import open_envelope
from protocol.errors import RemoteProtocolError, leaves
from protocol.ids import Digest, parse_peer_id
from protocol.keys import SigningKey
from protocol.manifest import ModelManifest
from protocol.net.dial_policy import DialPolicy
from protocol.net.errors import NetError
from protocol.net.pool import StreamPool
from protocol.net.rpc import RpcClient
from protocol.offers import ModelOffer, NodeOffer
from protocol.pricing import PRICE_POSITIONS, PriceSheet
from protocol.programs.runtime import system_runtime
from protocol.services import (
    BLOB_PROTOCOL,
    LEASE_PROTOCOL,
    Method,
    NodesAsk,
    NodesReply,
    NodeSummary,
)

log = structlog.get_logger(__name__)

ROLE = "client"
_ANSWER_WITHIN_S = 15.0
# Of twenty nodes each: enough for a middle price.
_PAGES_MAX = 10

T = TypeVar("T")

# Says whether this manifest shall be fetched: raises if there is no room for it, for example.
OnManifest = Callable[[ModelManifest], None]


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """`named` are multiaddresses with /p2p/ of peers to ask first; `coordinators` are asked for
    the model, and for nodes that offer it. `policy` judges every dial."""

    named: tuple[str, ...]
    coordinators: tuple[str, ...]
    policy: DialPolicy


def fetch_from_peers(
    options: PeerOptions,
    digest: Digest,
    folders: tuple[Path, Path],
    *,
    on_manifest: OnManifest,
    progress: ProgressCallback,
) -> ModelManifest:
    """Bring a model's files into the second of `folders`; the first keeps what has arrived.

    Blocks. Raises DownloadError, what `on_manifest` raises, OSError.
    """

    async def fetch(markets: RpcClient, blobs: RpcClient) -> ModelManifest:
        partial, target = folders
        peers = await find_peers(markets, options, digest)
        download = PeerDownload(blobs, peers, digest)
        manifest = await download.manifest()
        on_manifest(manifest)
        await download.fetch(manifest, partial, target, progress)
        return manifest

    return _run_as_client(options.policy, fetch)


def going_prices(options: PeerOptions) -> dict[str, PriceSheet]:
    """What models go for in the markets of `options.coordinators`: the middle price of the nodes
    that offer one, by the model's name and by its digest. Blocks for some seconds; a coordinator
    that does not answer is left out."""

    async def ask(markets: RpcClient, _blobs: RpcClient) -> dict[str, PriceSheet]:
        return await ask_prices(markets, options.coordinators)

    return _run_as_client(options.policy, ask)


async def ask_prices(rpc: RpcClient, coordinators: Sequence[str]) -> dict[str, PriceSheet]:
    """As `going_prices`, of a client that runs."""
    found: dict[str, list[PriceSheet]] = {}
    for address in coordinators:
        after = ""
        for _ in range(_PAGES_MAX):
            reply = await _ask_nodes(rpc, address, NodesAsk(after=after))
            for model in (model for node in reply.nodes for model in _offered(node)):
                for called in {model.name, str(model.manifest_digest)}:
                    found.setdefault(called, []).append(model.price)
            after = reply.next_after
            if not after:
                break
    return {called: _middle(prices) for called, prices in found.items()}


def _run_as_client(policy: DialPolicy, body: Callable[[RpcClient, RpcClient], Awaitable[T]]) -> T:
    """Run `body` with clients of coordinators and of peers that share models."""

    async def run() -> T:
        # Half a second to load, which other commands need not pay.
        from protocol.net.libp2p import Libp2pTransport  # noqa: PLC0415

        transport = Libp2pTransport(SigningKey.generate(os.urandom), (), policy=policy)
        rng = system_runtime().child_rng()
        markets = StreamPool(transport, LEASE_PROTOCOL, role=ROLE, rng=rng)
        blobs = StreamPool(transport, BLOB_PROTOCOL, role=ROLE, rng=rng)
        async with trio.open_nursery() as nursery:
            for part in (transport.run, markets.run, blobs.run):
                await nursery.start(part)
            result = await body(RpcClient(markets), RpcClient(blobs))
            nursery.cancel_scope.cancel()
        return result

    try:
        return trio.run(run)
    except BaseExceptionGroup as group:
        # Tasks that end together end for one cause, which callers know by its type.
        cause = leaves(group)[0]
    raise cause


async def find_peers(rpc: RpcClient, options: PeerOptions, digest: Digest) -> Sequence[PeerAddress]:
    """Those named first, then the coordinators, which may serve a store of their own, then the
    nodes that they know."""
    found = {peer.peer: peer for peer in map(peer_at, options.named)}
    for coordinator in map(peer_at, options.coordinators):
        found.setdefault(coordinator.peer, coordinator)
    for address in options.coordinators:
        reply = await _ask_nodes(rpc, address, NodesAsk(digest))
        for summary in reply.nodes:
            peer = _peer_of(summary)
            if peer is not None:
                found.setdefault(peer.peer, peer)
    return list(found.values())[:PEERS_MAX]


async def _ask_nodes(rpc: RpcClient, address: str, ask: NodesAsk) -> NodesReply:
    """An empty reply if the coordinator does not answer."""
    coordinator = peer_at(address)
    try:
        return await rpc.call(
            coordinator.peer,
            Method.NODES,
            ask,
            NodesReply,
            timeout_s=_ANSWER_WITHIN_S,
            addresses=coordinator.addresses,
        )
    except (NetError, RemoteProtocolError) as error:
        log.warning("coordinator_not_asked", address=address, error=str(error))
        return NodesReply(())


def peer_at(address: str) -> PeerAddress:
    """Raises RemoteProtocolError unless the address ends in /p2p/ and a peer id."""
    return PeerAddress(parse_peer_id(address.rpartition("/p2p/")[2]), (address,))


def _peer_of(summary: NodeSummary) -> PeerAddress | None:
    offer = _offer_of(summary)
    return None if offer is None else PeerAddress(summary.node, offer.addresses)


def _offered(summary: NodeSummary) -> tuple[ModelOffer, ...]:
    offer = _offer_of(summary)
    return () if offer is None else offer.models


def _offer_of(summary: NodeSummary) -> NodeOffer | None:
    """What the node itself has signed; None if it did not."""
    try:
        return open_envelope(summary.offer, NodeOffer, signer=summary.node).message
    except RemoteProtocolError:
        return None


def _middle(prices: Sequence[PriceSheet]) -> PriceSheet:
    """Position by position: a node that asks for a fortune, or for nothing, moves it little."""
    return PriceSheet(
        **{
            position.field: median_low(position.of(price) for price in prices)
            for position in PRICE_POSITIONS
        }
    )
