"""One market of real processes for this folder: a coordinator, and a node with a chat model."""

import random
from collections.abc import Callable, Iterator

import pytest

from capanode.models.store import ModelStore
from sim.demo import CHAT_MODEL, EMBEDDING_MODEL
from tests.integration.conftest import RunningMarket, run_market
from tests.interop.javascript import JavascriptPeer, find_node, start_peer

CREDITS = "1"
RNG = random.Random(7)


@pytest.fixture(scope="package")
def market(
    demo_model_store: ModelStore,
    demo_models: Callable[[str], object],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[RunningMarket]:
    find_node()
    for name in (CHAT_MODEL, EMBEDDING_MODEL):
        demo_models(name)
    with run_market(tmp_path_factory.mktemp("market"), demo_model_store.root, nodes=1) as market:
        yield market
        market.audit()


@pytest.fixture(scope="package")
def buyer(
    market: RunningMarket, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[JavascriptPeer]:
    """A client in JavaScript with money, connected to the coordinator."""
    with start_peer("client.mjs", tmp_path_factory.mktemp("peers") / "client.log") as peer:
        seed = RNG.randbytes(32).hex()
        peer_id = peer.call("identity", seed=seed)
        credit = f"--credit={CREDITS}"
        market.command("accounts", "create", "javascript", f"--peer-id={peer_id}", credit)
        hello = peer.call("connect", seed=seed, coordinator=market.coordinator)
        assert hello == {"versions": [1], "role": "coordinator"}
        yield peer
