"""A real node with two models and memory for one: it sells both, in turn."""

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from capanode.models.store import ModelStore
from coordinator.cli.market_session import open_market
from coordinator.settings import CoordinatorConfig
from sim.demo import EMBEDDING_MODEL, IMAGE_MODEL, open_account, wait_nodes
from sim.latency import LATENCY_CLASSES
from sim.network import LocalNetwork, NodePlan, open_network, run_command
from tests.capanode.sandbox_makers import working_sandboxes
from tests.integration.test_market import png

pytestmark = [
    pytest.mark.models,
    pytest.mark.slow,
    pytest.mark.skipif(not working_sandboxes(), reason="no isolation works here"),
]

# Each of the two is taken to need some 0.7 GiB.
PLAN = NodePlan(
    name="node-1",
    models=(EMBEDDING_MODEL, IMAGE_MODEL),
    input_per_mtok="0.02",
    output_per_mtok="0.02",
    image="0.0001",
    latency=LATENCY_CLASSES[0],
    slots=2,
    options=("--memory-max-gib=1",),
)


async def states(network: LocalNetwork) -> dict[str, str]:
    """As the owner sees them."""
    (node,) = network.nodes
    command = ("capanode", "status", f"--data-dir={node.data_dir}", "--json")
    told = json.loads(await trio.to_thread.run_sync(run_command, *command))
    return {model["name"]: model["state"] for model in told["models"]}


async def embed(http: httpx.AsyncClient) -> None:
    body = {"model": EMBEDDING_MODEL, "input": "A cat sat on the mat."}
    reply = await http.post("/v1/embeddings", json=body)
    assert len(reply.raise_for_status().json()["data"][0]["embedding"]) == 384


async def classify(http: httpx.AsyncClient) -> None:
    image = base64.b64encode(png(64, 64)).decode()
    body: dict[str, Any] = {"model": IMAGE_MODEL, "image": image}
    reply = await http.post("/v1/images/classifications", json=body)
    assert reply.raise_for_status().json()["data"]


async def test_a_node_sells_more_models_than_its_memory_holds(
    demo_model_store: ModelStore, demo_models: Callable[[str], Path], tmp_path: Path
) -> None:
    for model in PLAN.models:
        demo_models(model)
    async with open_network(tmp_path, demo_model_store.root) as network:
        await network.start_coordinator()
        await network.start_node(PLAN)
        key = await open_account(network)
        config = CoordinatorConfig.resolve(flags={"data_dir": network.coordinator_dir})
        async with open_market(config, at=None, key_path=None) as market:
            await wait_nodes(market, 1, lambda offer, rtt_ms: None)
        assert await states(network) == {EMBEDDING_MODEL: "ready", IMAGE_MODEL: "cold"}
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(
            base_url=network.endpoint.http, headers=headers, timeout=60, trust_env=False
        ) as http:
            await embed(http)
            await classify(http)
            assert await states(network) == {EMBEDDING_MODEL: "cold", IMAGE_MODEL: "ready"}
            await embed(http)
            assert await states(network) == {EMBEDDING_MODEL: "ready", IMAGE_MODEL: "cold"}
