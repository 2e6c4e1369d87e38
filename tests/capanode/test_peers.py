"""Models from peers: what is shared, what is asked of whom, and what a liar costs."""

import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from capanode.jobs.server import ROLE
from capanode.models.catalog import Catalog
from capanode.models.errors import (
    ConversionError,
    DownloadError,
    ModelError,
    SourceError,
    UnknownModelError,
    UnsafeModelError,
)
from capanode.models.library import PullOptions, pull
from capanode.models.peer_market import PeerOptions, ask_prices, find_peers
from capanode.models.progress import ProgressCallback, ignore_progress
from capanode.models.sources_peer import PeerAddress, PeerDownload
from capanode.models.store import ModelStore
from protocol.blobs import (
    PIECE_BYTES_MIN,
    PIECES_MAX,
    BlobMethod,
    BlobRead,
    BlobReply,
    piece_bytes_of,
)
from protocol.envelope import seal
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import Digest, PeerId, sha256_digest
from protocol.manifest import ModelManifest, manifest_digest
from protocol.net.dial_policy import PUBLIC_ONLY
from protocol.net.link import serve_channels
from protocol.net.memory import MemoryNetwork
from protocol.net.memory_wire import Conditions
from protocol.net.pool import StreamPool
from protocol.net.rpc import RpcClient, RpcServer
from protocol.net.transport import Stream
from protocol.pricing import PriceSheet
from protocol.programs.runners import InlineRunner
from protocol.programs.sharing.blob_server import BlobServer
from protocol.programs.sharing.model_folder import ModelFolder, StoredModel
from protocol.programs.sharing.shared_blobs import DamagedBlobError, SharedBlobs, may_be_shared
from protocol.services import (
    BLOB_PROTOCOL,
    LEASE_PROTOCOL,
    Method,
    NodesAsk,
    NodesReply,
    NodeSummary,
)
from tests.capanode.fakes import FakeWorker, make_manifest, make_model, make_offer
from tests.capanode.model_makers import layout_files, manifest_of, write_files
from tests.protocol.makers import NOW_MS
from tests.protocol.net.contract import key_of
from tests.protocol.net.virtual import virtual_time

# Two pieces and a bit.
WEIGHTS = random.Random(3).randbytes(2 * PIECE_BYTES_MIN + 1_000)
FILES = {"config.json": b"{}", "model.safetensors": WEIGHTS}
NEAR = Conditions(latency_s=0.01)


def add_public(store: ModelStore, files: dict[str, bytes] = FILES, **changes: Any) -> StoredModel:
    manifest = replace(manifest_of(files), source="hf:owner/tiny@" + "a" * 40, **changes)
    with store.scratch() as scratch:
        write_files(scratch, files)
        return store.add(scratch, manifest, name=manifest.name)


@pytest.fixture(scope="module")
def seed_store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    store = ModelStore(tmp_path_factory.mktemp("seed"))
    add_public(store)
    return store


class Counting(SharedBlobs):
    """An honest peer that counts what it gives, and may change it on its way out."""

    def __init__(
        self,
        store: ModelStore,
        *,
        lie: Callable[[int, bytes], bytes] = lambda offset, data: data,
        lie_outline: Callable[[bytes], bytes] = lambda outline: outline,
    ) -> None:
        super().__init__(ModelFolder(store.root))
        self.given_bytes = 0
        self._lie = lie
        self._lie_outline = lie_outline

    def read(self, path: Path, offset: int, length: int) -> bytes:
        data = super().read(path, offset, length)
        self.given_bytes += len(data)
        return self._lie(offset, data)

    def outline(
        self, digest: Digest, path: Path, *, is_time_up: Callable[[], bool]
    ) -> bytes | None:
        made = super().outline(digest, path, is_time_up=is_time_up)
        return made if made is None else self._lie_outline(made)


@asynccontextmanager
async def market_of(
    *shelves: SharedBlobs, bytes_per_s: int = 10**9
) -> AsyncIterator[tuple[RpcClient, list[PeerAddress]]]:
    network = MemoryNetwork(random.Random(5), conditions=NEAR)
    peers = []
    async with trio.open_nursery() as nursery:
        for number, shelf in enumerate(shelves):
            transport = network.transport(key_of(10 + number))
            server = BlobServer(shelf, role=ROLE, bytes_per_s=bytes_per_s, runner=InlineRunner())
            transport.handle(BLOB_PROTOCOL, server.handle)
            await nursery.start(transport.run)
            peers.append(PeerAddress(transport.peer_id, transport.addresses))
        client = network.transport(key_of(1))
        pool = StreamPool(client, BLOB_PROTOCOL, role="client", rng=random.Random(1))
        await nursery.start(client.run)
        await nursery.start(pool.run)
        yield RpcClient(pool), peers
        nursery.cancel_scope.cancel()


async def download(
    rpc: RpcClient, peers: Sequence[PeerAddress], digest: Digest, folder: Path
) -> dict[str, bytes]:
    for name in ("partial", "target"):
        (folder / name).mkdir(exist_ok=True)
    ask = PeerDownload(rpc, peers, digest)
    manifest = await ask.manifest()
    await ask.fetch(manifest, folder / "partial", folder / "target", ignore_progress)
    return {path.name: path.read_bytes() for path in (folder / "target").iterdir()}


# What is shared


@pytest.mark.parametrize(
    ("changes", "is_shared"),
    [
        ({}, True),
        ({"licence": "MIT"}, True),
        ({"licence": "llama3.1"}, False),
        ({"licence": "apache-2.0 (not public)"}, False),
        ({"licence": "unknown"}, False),
        ({"source": "file:mine"}, False),
    ],
)
def test_only_public_models_under_free_licences_are_shared(
    tmp_path: Path, changes: dict[str, Any], is_shared: bool
) -> None:
    model = add_public(ModelStore(tmp_path), {"config.json": b"{}"})
    changed = replace(model, manifest=replace(model.manifest, **changes))
    assert may_be_shared(changed) is is_shared


def test_what_is_not_shared_is_as_if_it_were_not_here(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    model = add_public(store, {"config.json": b"private"}, licence="llama3.1")
    shared = SharedBlobs(ModelFolder(store.root))
    assert shared.manifest(model.digest) is None
    assert shared.path(sha256_digest(b"private")) is None


def test_an_outline_is_made_in_turns_and_only_of_what_is_sound(
    seed_store: ModelStore, tmp_path: Path
) -> None:
    shared, digest = SharedBlobs(ModelFolder(seed_store.root)), sha256_digest(WEIGHTS)
    path = shared.path(digest)
    assert path is not None
    turns = 0

    def one_chunk_a_turn() -> bool:
        nonlocal turns
        turns += 1
        return turns % 2 == 0

    outline = None
    while outline is None:
        outline = shared.outline(digest, path, is_time_up=one_chunk_a_turn)
    assert turns > 4
    assert outline[:32] == bytes.fromhex(sha256_digest(WEIGHTS[:PIECE_BYTES_MIN]))
    assert len(outline) == 3 * 32
    damaged = tmp_path / "damaged"
    damaged.write_bytes(WEIGHTS[:-1] + b"!")
    with pytest.raises(DamagedBlobError):
        SharedBlobs(ModelFolder(seed_store.root)).outline(digest, damaged, is_time_up=lambda: False)


def test_pieces_grow_with_files_so_that_an_outline_stays_small() -> None:
    assert piece_bytes_of(1) == PIECE_BYTES_MIN
    for size in (PIECE_BYTES_MIN * PIECES_MAX, PIECE_BYTES_MIN * PIECES_MAX + 1, 1 << 40):
        assert -(-size // piece_bytes_of(size)) <= PIECES_MAX


# Loading


@virtual_time
async def test_several_peers_each_give_a_part(seed_store: ModelStore, tmp_path: Path) -> None:
    shelves = [Counting(seed_store) for _ in range(3)]
    async with market_of(*shelves) as (rpc, peers):
        assert await download(rpc, peers, seed_store.digests()[0], tmp_path) == FILES
    given = [shelf.given_bytes for shelf in shelves]
    assert sum(given) == len(WEIGHTS) + 2, "no byte twice"
    assert max(given) <= PIECE_BYTES_MIN + 1_002, "no peer gives all of it"


@virtual_time
async def test_what_has_arrived_is_not_asked_for_again(
    seed_store: ModelStore, tmp_path: Path
) -> None:
    digest = seed_store.digests()[0]
    async with market_of(Counting(seed_store), bytes_per_s=10**6) as (rpc, peers):
        with trio.move_on_after(4):
            await download(rpc, peers, digest, tmp_path)
    again = Counting(seed_store)
    async with market_of(again) as (rpc, peers):
        assert await download(rpc, peers, digest, tmp_path) == FILES
    assert again.given_bytes < len(WEIGHTS) / 2


@virtual_time
async def test_a_server_keeps_to_its_pace(seed_store: ModelStore, tmp_path: Path) -> None:
    async with market_of(Counting(seed_store), bytes_per_s=10**6) as (rpc, peers):
        began_s = trio.current_time()
        await download(rpc, peers, seed_store.digests()[0], tmp_path)
    # 8.4 MB at 1 MB/s, of which 4 MiB go at once.
    assert 3.5 < trio.current_time() - began_s < 8.0


def flip(offset: int, data: bytes) -> bytes:
    return bytes([data[0] ^ 1]) + data[1:]


@virtual_time
async def test_a_peer_that_sends_wrong_bytes_costs_a_few_pieces(
    seed_store: ModelStore, tmp_path: Path
) -> None:
    liar, honest = Counting(seed_store, lie=flip), Counting(seed_store)
    async with market_of(liar, honest) as (rpc, peers):
        assert await download(rpc, peers, seed_store.digests()[0], tmp_path) == FILES
    # Its readers had a piece each under way.
    assert liar.given_bytes <= len(WEIGHTS) + 2
    assert honest.given_bytes == len(WEIGHTS) + 2


@virtual_time
async def test_an_outline_that_one_peer_invents_is_not_followed(
    seed_store: ModelStore, tmp_path: Path
) -> None:
    liar = Counting(seed_store, lie_outline=lambda outline: bytes(len(outline)))
    shelves = [liar, Counting(seed_store), Counting(seed_store)]
    async with market_of(*shelves) as (rpc, peers):
        assert await download(rpc, peers, seed_store.digests()[0], tmp_path) == FILES
    assert liar.given_bytes <= 2, "the small file, which has no outline"


@virtual_time
async def test_liars_in_the_majority_cost_a_file_and_no_more(
    seed_store: ModelStore, tmp_path: Path
) -> None:
    """They agree on an outline that fits what they send."""
    other = flip(0, WEIGHTS)
    pieces = [other[at : at + PIECE_BYTES_MIN] for at in range(0, len(other), PIECE_BYTES_MIN)]
    lie = b"".join(bytes.fromhex(sha256_digest(piece)) for piece in pieces)

    def send(offset: int, data: bytes) -> bytes:
        return flip(0, data) if offset == 0 and len(data) > 2 else data

    liars = [Counting(seed_store, lie=send, lie_outline=lambda _: lie) for _ in range(2)]
    honest = Counting(seed_store)
    async with market_of(*liars, honest) as (rpc, peers):
        assert await download(rpc, peers, seed_store.digests()[0], tmp_path) == FILES
    assert honest.given_bytes <= PIECE_BYTES_MIN + 2, "the pieces that were right are kept"


@virtual_time
async def test_without_an_honest_peer_the_reasons_are_told(
    seed_store: ModelStore, tmp_path: Path
) -> None:
    async with market_of(Counting(seed_store, lie=flip)) as (rpc, peers):
        with pytest.raises(DownloadError, match=r"no peer is left for .*: it sent a wrong piece"):
            await download(rpc, peers, seed_store.digests()[0], tmp_path)
    assert list((tmp_path / "target").iterdir()) == []


@virtual_time
async def test_a_model_that_no_peer_has_is_not_found(
    seed_store: ModelStore, tmp_path: Path
) -> None:
    async with market_of(Counting(seed_store)) as (rpc, peers):
        gone = PeerAddress(key_of(99).peer_id, ("/ip4/127.0.0.1/tcp/9/p2p/x",))
        with pytest.raises(DownloadError, match="not shared here"):
            await PeerDownload(rpc, [*peers, gone], Digest("0" * 64)).manifest()
        with pytest.raises(DownloadError, match="none is known"):
            await PeerDownload(rpc, [], Digest("0" * 64)).manifest()


@virtual_time
async def test_a_read_beyond_a_file_or_of_another_file_gives_nothing(
    seed_store: ModelStore,
) -> None:
    async with market_of(Counting(seed_store)) as (rpc, peers):

        async def read(digest: Digest, offset: int) -> bytes:
            ask = BlobRead(digest, offset, 100)
            peer = peers[0]
            reply = await rpc.call(
                peer.peer, BlobMethod.READ, ask, BlobReply, timeout_s=5, addresses=peer.addresses
            )
            return reply.data

        assert await read(sha256_digest(b"{}"), 1) == b"}"
        assert await read(sha256_digest(b"{}"), 2) == b""
        with pytest.raises(RemoteProtocolError) as caught:
            await read(Digest("0" * 64), 0)
        assert caught.value.code is Code.NOT_FOUND


# Who has a model, and what it goes for


@asynccontextmanager
async def coordinator_of(
    *nodes: NodeSummary, shelf: SharedBlobs | None = None
) -> AsyncIterator[tuple[RpcClient, str, RpcClient]]:
    """A coordinator that lists two nodes a page, and clients of its market and of its blobs."""

    async def answer(_: PeerId, ask: NodesAsk) -> NodesReply:
        start = int(ask.after or 0)
        is_last = start + 2 >= len(nodes)
        return NodesReply(nodes[start : start + 2], "" if is_last else str(start + 2))

    network = MemoryNetwork(random.Random(5), conditions=NEAR)
    server = RpcServer()
    server.register(Method.NODES, NodesAsk, answer)

    async def serve(stream: Stream) -> None:
        await serve_channels(stream, server.serve_channel, role="coordinator")

    transport, client = network.transport(key_of(2)), network.transport(key_of(1))
    transport.handle(LEASE_PROTOCOL, serve)
    if shelf is not None:
        blobs = BlobServer(shelf, role="coordinator", bytes_per_s=10**9, runner=InlineRunner())
        transport.handle(BLOB_PROTOCOL, blobs.handle)
    pools = [
        StreamPool(client, protocol, role="client", rng=random.Random(1))
        for protocol in (LEASE_PROTOCOL, BLOB_PROTOCOL)
    ]
    async with trio.open_nursery() as nursery:
        for run in (transport.run, client.run, *(pool.run for pool in pools)):
            await nursery.start(run)
        yield RpcClient(pools[0]), transport.addresses[0], RpcClient(pools[1])
        nursery.cancel_scope.cancel()


MODEL = make_model(make_manifest(), FakeWorker())


def node(signer: int, *, claims: int | None = None, output_nano: int = 0) -> NodeSummary:
    price = PriceSheet(output_nano_per_mtok=output_nano)
    offer = make_offer(replace(MODEL, price=price), NOW_MS)
    signed = seal(key_of(signer), replace(offer, addresses=(f"/ip4/1.2.3.4/tcp/{signer}",)))
    who = key_of(claims or signer).peer_id
    return NodeSummary(who, signed.raw, None, True, 0, 0, "closed", 1.0)


@virtual_time
async def test_a_coordinator_is_asked_and_the_nodes_that_signed_their_offers() -> None:
    async with coordinator_of(node(5), node(6, claims=7)) as (rpc, address, _):
        options = PeerOptions((), (address, address), PUBLIC_ONLY)
        found = await find_peers(rpc, options, MODEL.digest)
        assert list(found) == [
            PeerAddress(key_of(2).peer_id, (address,)),
            PeerAddress(key_of(5).peer_id, ("/ip4/1.2.3.4/tcp/5",)),
        ]


@virtual_time
async def test_a_model_comes_from_a_coordinator_that_serves_a_store(
    seed_store: ModelStore, tmp_path: Path
) -> None:
    digest = seed_store.digests()[0]
    async with coordinator_of(shelf=Counting(seed_store)) as (rpc, address, blobs):
        peers = await find_peers(rpc, PeerOptions((), (address,), PUBLIC_ONLY), digest)
        assert await download(blobs, peers, digest, tmp_path) == FILES


@virtual_time
async def test_a_coordinator_that_serves_no_store_is_passed_over(
    seed_store: ModelStore, tmp_path: Path
) -> None:
    digest = seed_store.digests()[0]
    async with coordinator_of() as (rpc, address, blobs):
        peers = await find_peers(rpc, PeerOptions((), (address,), PUBLIC_ONLY), digest)
        with pytest.raises(DownloadError, match=f"{peers[0].peer[-8:]}: "):
            await download(blobs, peers, digest, tmp_path)


@virtual_time
async def test_the_going_price_is_the_middle_one_whatever_some_ask() -> None:
    asked = (100, 110, 10**9, 120, 0)
    nodes = [node(10 + at, output_nano=price) for at, price in enumerate(asked)]
    async with coordinator_of(*nodes) as (rpc, address, _):
        prices = await ask_prices(rpc, [address])
        assert prices[MODEL.name].output_nano_per_mtok == 110
        assert prices[MODEL.digest] == prices[MODEL.name]
        away = f"/ip4/127.0.0.1/tcp/9/p2p/{key_of(99).peer_id}"
        assert await ask_prices(rpc, [away]) == {}


# As an operator pulls them

PEERS = PeerOptions(("/ip4/127.0.0.1/tcp/1/p2p/x",), (), PUBLIC_ONLY)


def peers_with(files: dict[str, bytes], manifest: ModelManifest) -> PullOptions:
    """Peers that have one model, without a network between."""

    def ask(
        options: PeerOptions,
        digest: Digest,
        folders: tuple[Path, Path],
        *,
        on_manifest: Callable[[ModelManifest], None],
        progress: ProgressCallback,
    ) -> ModelManifest:
        assert digest == manifest_digest(manifest)
        on_manifest(manifest)
        write_files(folders[1], files)
        return manifest

    return PullOptions(peers=PEERS, ask_peers=ask)


def test_a_model_of_peers_has_the_digest_that_was_asked_for(tmp_path: Path) -> None:
    store, files = ModelStore(tmp_path), layout_files()
    manifest = manifest_of(files)
    digest = manifest_digest(manifest)
    model = pull(store, Catalog(()), f"peer:{digest}", options=peers_with(files, manifest))
    assert model.digest == digest
    assert store.names() == {"tiny": digest}
    store.verify(digest)


def test_a_digest_makes_no_strangers_model_safe(tmp_path: Path) -> None:
    """Its files pass the converter as a hub's do, and its manifest must say what they are."""
    store = ModelStore(tmp_path)
    cases: tuple[tuple[dict[str, bytes], dict[str, Any], type[ModelError], str], ...] = (
        (layout_files(auto_map={"AutoModel": "evil"}), {}, ConversionError, "auto_map"),
        ({**layout_files(), "model.safetensors": b"x" * 99}, {}, ConversionError, "header"),
        (layout_files(), {"architecture": "BertModel"}, UnsafeModelError, "says that it is"),
        (layout_files(), {"architecture": "TensorExport"}, UnsafeModelError, "runs code"),
    )
    for files, changes, error, words in cases:
        manifest = replace(manifest_of(files), **changes)
        with pytest.raises(error, match=words):
            pull(
                store,
                Catalog(()),
                f"peer:{manifest_digest(manifest)}",
                options=peers_with(files, manifest),
            )
    assert store.digests() == []
    assert store.names() == {}


def test_a_strangers_model_does_not_take_the_name_of_another(tmp_path: Path) -> None:
    store, files = ModelStore(tmp_path), layout_files()
    mine = add_public(store, {"config.json": b"mine"})
    manifest = manifest_of(files)
    source, options = f"peer:{manifest_digest(manifest)}", peers_with(files, manifest)
    with pytest.raises(UnknownModelError, match="--name"):
        pull(store, Catalog(()), source, options=options)
    pull(store, Catalog(()), source, name="theirs", options=options)
    assert store.names()["tiny"] == mine.digest


def test_without_a_coordinator_or_a_named_peer_there_is_no_one_to_ask(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="--from"):
        pull(ModelStore(tmp_path), Catalog(()), f"peer:{'0' * 64}")
