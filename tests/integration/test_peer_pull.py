"""A model pulled from two peers over real sockets."""

import json
import sys
from pathlib import Path

import httpx
import numpy as np
import pytest
import trio

from capanode.jobs.server import ROLE
from capanode.models.catalog import Catalog
from capanode.models.hub_connection import HubOptions
from capanode.models.library import PullOptions, pull
from capanode.models.peer_market import PeerOptions
from capanode.models.sources_hub import HubClient
from capanode.models.store import ModelStore
from protocol.limits import MIB
from protocol.net.dial_policy import ALLOW_LOOPBACK
from protocol.net.libp2p import Libp2pTransport
from protocol.net.relay_places import RelayLimits
from protocol.programs.runners import ThreadRunner
from protocol.programs.sharing.blob_server import BlobServer
from protocol.programs.sharing.model_folder import ModelFolder
from protocol.programs.sharing.shared_blobs import SharedBlobs
from protocol.services import BLOB_PROTOCOL
from tests.capanode.model_makers import FakeHub, layout_files, safetensors_bytes
from tests.integration.start_programs import running_coordinator
from tests.protocol.net.contract import key_of

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)


@pytest.fixture
def seed(tmp_path: Path) -> ModelStore:
    """A store whose model came from a hub."""
    weights = safetensors_bytes({"a": np.ones((1_500, 1_000), np.float32)})
    hub = FakeHub({**layout_files(), "model.safetensors": weights})
    options = PullOptions(
        connect=lambda _: HubClient(HubOptions(), transport=httpx.MockTransport(hub))
    )
    store = ModelStore(tmp_path / "seed")
    pull(store, Catalog(()), "hf:owner/tiny", options=options)
    return store


async def test_a_model_comes_from_peers_that_share_it(seed: ModelStore, tmp_path: Path) -> None:
    digest = seed.digests()[0]
    store = ModelStore(tmp_path / "store")
    addresses: list[str] = []
    async with trio.open_nursery() as nursery:
        for number in (1, 2):
            transport = Libp2pTransport(key_of(number), ("/ip4/127.0.0.1/tcp/0",))
            server = BlobServer(
                SharedBlobs(ModelFolder(seed.root)),
                role=ROLE,
                bytes_per_s=10**9,
                runner=ThreadRunner(),
            )
            transport.handle(BLOB_PROTOCOL, server.handle)
            await nursery.start(transport.run)
            addresses += transport.addresses
        options = PullOptions(peers=PeerOptions(tuple(addresses), (), ALLOW_LOOPBACK))
        with trio.fail_after(60):
            model = await trio.to_thread.run_sync(
                lambda: pull(store, Catalog(()), f"peer:{digest}", options=options)
            )
        nursery.cancel_scope.cancel()
    assert model.digest == digest
    assert model.manifest.licence == "mit"
    store.verify(digest)


async def test_the_command_prints_one_object_and_logs_beside_it(
    seed: ModelStore, tmp_path: Path
) -> None:
    digest = seed.digests()[0]
    transport = Libp2pTransport(key_of(3), ("/ip4/127.0.0.1/tcp/0",))
    server = BlobServer(
        SharedBlobs(ModelFolder(seed.root)), role=ROLE, bytes_per_s=10**9, runner=ThreadRunner()
    )
    transport.handle(BLOB_PROTOCOL, server.handle)
    async with trio.open_nursery() as nursery:
        await nursery.start(transport.run)
        command = [sys.executable, "-m", "capanode", "models", "pull", f"peer:{digest}", "--json"]
        with trio.fail_after(60):
            done = await trio.run_process(
                [*command, "--data-dir", str(tmp_path / "home"), "--from", transport.addresses[0]],
                capture_stdout=True,
                cwd=Path(__file__).parents[2],
            )
        nursery.cancel_scope.cancel()
    assert json.loads(done.stdout) == {"name": "owner/tiny", "digest": digest}


@pytest.mark.slow
async def test_a_model_comes_through_a_relay_in_as_many_circuits_as_it_takes(
    seed: ModelStore, tmp_path: Path
) -> None:
    digest = seed.digests()[0]
    limits = RelayLimits(circuit_bytes_max=4 * MIB)
    relay = Libp2pTransport(key_of(4), LOOPBACK, policy=ALLOW_LOOPBACK, relay=limits)
    # As behind routers that give each destination another port.
    hidden = Libp2pTransport(key_of(5), (), policy=ALLOW_LOOPBACK, does_without_relays=False)
    blobs = SharedBlobs(ModelFolder(seed.root))
    server = BlobServer(blobs, role=ROLE, bytes_per_s=10**9, runner=ThreadRunner())
    hidden.handle(BLOB_PROTOCOL, server.handle)
    store = ModelStore(tmp_path / "store")
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        await nursery.start(hidden.run)
        has_place = trio.Event()
        place = hidden.reserve(relay.addresses[0], has_place.set)
        with trio.fail_after(60):
            await has_place.wait()
            options = PullOptions(peers=PeerOptions(place.addresses, (), ALLOW_LOOPBACK))
            model = await trio.to_thread.run_sync(
                lambda: pull(store, Catalog(()), f"peer:{digest}", options=options)
            )
        # More than one circuit carries.
        assert relay.statistics().relayed_bytes > 4 * MIB
        nursery.cancel_scope.cancel()
    store.verify(model.digest)


@pytest.mark.slow
async def test_a_running_coordinator_gives_models_of_its_store(
    seed: ModelStore, tmp_path: Path
) -> None:
    digest = seed.digests()[0]
    with running_coordinator(tmp_path / "coordinator", f"--share-store={seed.root}") as addresses:
        options = PullOptions(peers=PeerOptions((), addresses, ALLOW_LOOPBACK))
        store = ModelStore(tmp_path / "store")
        with trio.fail_after(60):
            model = await trio.to_thread.run_sync(
                lambda: pull(store, Catalog(()), f"peer:{digest}", options=options)
            )
    assert model.digest == digest
    store.verify(digest)
