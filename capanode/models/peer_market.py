"""Peers to ask for a model: those that the operator names, and nodes that offer it in the markets
that the configuration lists. The asker has a key of its own for each pull, and listens nowhere."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

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
from protocol.offers import NodeOffer
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

# Says whether this manifest shall be fetched: raises if there is no room for it, for example.
OnManifest = Callable[[ModelManifest], None]


@dataclass(frozen=True, slots=True)
class PeerOptions:
    """`named` are multiaddresses with /p2p/ of peers to ask first; `coordinators` are asked for
    nodes that offer the model. `policy` judges every dial."""

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

    async def run() -> ModelManifest:
        partial, target = folders
        # Half a second to load, which other commands need not pay.
        from protocol.net.libp2p import Libp2pTransport  # noqa: PLC0415

        transport = Libp2pTransport(SigningKey.generate(os.urandom), (), policy=options.policy)
        rng = system_runtime().child_rng()
        markets = StreamPool(transport, LEASE_PROTOCOL, role=ROLE, rng=rng)
        blobs = StreamPool(transport, BLOB_PROTOCOL, role=ROLE, rng=rng)
        async with trio.open_nursery() as nursery:
            for part in (transport.run, markets.run, blobs.run):
                await nursery.start(part)
            peers = await find_peers(RpcClient(markets), options, digest)
            download = PeerDownload(RpcClient(blobs), peers, digest)
            manifest = await download.manifest()
            on_manifest(manifest)
            await download.fetch(manifest, partial, target, progress)
            nursery.cancel_scope.cancel()
        return manifest

    try:
        return trio.run(run)
    except BaseExceptionGroup as group:
        # Tasks that end together end for one cause, which callers know by its type.
        cause = leaves(group)[0]
    raise cause


async def find_peers(rpc: RpcClient, options: PeerOptions, digest: Digest) -> Sequence[PeerAddress]:
    """Those named first, then what the coordinators know; a coordinator that does not answer is
    left out."""
    found = {peer.peer: peer for peer in map(peer_at, options.named)}
    for address in options.coordinators:
        coordinator = peer_at(address)
        try:
            reply = await rpc.call(
                coordinator.peer,
                Method.NODES,
                NodesAsk(digest),
                NodesReply,
                timeout_s=_ANSWER_WITHIN_S,
                addresses=coordinator.addresses,
            )
        except (NetError, RemoteProtocolError) as error:
            log.warning("coordinator_not_asked", address=address, error=str(error))
            continue
        for summary in reply.nodes:
            peer = _peer_of(summary)
            if peer is not None:
                found.setdefault(peer.peer, peer)
    return list(found.values())[:PEERS_MAX]


def peer_at(address: str) -> PeerAddress:
    """Raises RemoteProtocolError unless the address ends in /p2p/ and a peer id."""
    return PeerAddress(parse_peer_id(address.rpartition("/p2p/")[2]), (address,))


def _peer_of(summary: NodeSummary) -> PeerAddress | None:
    """What the node itself has signed; None if it did not."""
    try:
        opened = open_envelope(summary.offer, NodeOffer)
    except RemoteProtocolError:
        return None
    if opened.signer != summary.node:
        return None
    return PeerAddress(summary.node, opened.message.addresses)
