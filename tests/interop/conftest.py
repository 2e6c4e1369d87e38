"""One market of real processes for this folder: a coordinator, and a node with a chat model."""

import json
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

from capanode.models.store import ModelStore
from sim.demo import CHAT_MODEL, EMBEDDING_MODEL
from tests.integration.conftest import RunningMarket, run_market
from tests.interop.javascript import JavascriptPeer, find_node, start_peer

R = TypeVar("R")

# What nodes in JavaScript sell: an answer of their own, and what they claim is the chat model.
FIXED_MODEL = "fixed-answer"
PRICE = {"input_nano_per_mtok": 10_000_000, "output_nano_per_mtok": 20_000_000}
CREDITS = "1"
WAIT_S = 30.0
POLL_EVERY_S = 0.1
RNG = random.Random(7)


@pytest.fixture(scope="package")
def market(
    demo_model_store: ModelStore,
    demo_models: Callable[[str], Path],
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
        peer.id = peer.call("identity", seed=seed)
        credit = f"--credit={CREDITS}"
        market.command("accounts", "create", "javascript", f"--peer-id={peer.id}", credit)
        hello = peer.call("connect", seed=seed, coordinator=market.coordinator)
        assert hello == {"versions": [1], "role": "coordinator"}
        yield peer


@pytest.fixture(scope="package")
def our_node(buyer: JavascriptPeer) -> str:
    """The node that is not written in JavaScript: only it sells embeddings."""
    listed = buyer.call("ask", method="nodes", value={"model": EMBEDDING_MODEL})["nodes"]
    assert len(listed) == 1
    return str(listed[0]["node"])


@pytest.fixture(scope="package")
def make_seller(
    market: RunningMarket,
    buyer: JavascriptPeer,
    demo_models: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[], AbstractContextManager[JavascriptPeer]]:
    """Each call starts a node in JavaScript, with a key of its own."""
    chat = {"name": CHAT_MODEL, "digest": demo_models(CHAT_MODEL).name, "price": PRICE}
    models = [{"name": FIXED_MODEL, "price": PRICE}, chat]

    @contextmanager
    def start() -> Iterator[JavascriptPeer]:
        with start_peer("node.mjs", tmp_path_factory.mktemp("peers") / "node.log") as peer:
            seed = RNG.randbytes(32).hex()
            peer.id = buyer.call("identity", seed=seed)
            buyer.send("hear_offer", node=peer.id)
            started = peer.call("start", seed=seed, coordinator=market.coordinator, models=models)
            heard = buyer.answer()
            assert (heard["node"], heard["addresses"]) == (peer.id, started["addresses"])
            assert [model["manifest_digest"] for model in heard["models"]] == started["digests"]
            yield peer
            if peer.is_running:
                assert peer.call("surprises") == []

    return start


def earned(market: RunningMarket, node: str) -> int:
    """What the books say that it has; nothing if they know no account of it."""
    accounts = json.loads(market.command("accounts", "show", "--json"))
    return next((int(a["posted_nano"]) for a in accounts if a["id"] == node), 0)


def wait(ask: Callable[[], R], is_enough: Callable[[R], object]) -> R:
    """Ask until the answer is enough."""
    deadline_s = time.monotonic() + WAIT_S
    while not is_enough(answer := ask()):
        assert time.monotonic() < deadline_s, answer
        time.sleep(POLL_EVERY_S)
    return answer
