"""A node's folder is copied to a second machine: two nodes sign with one key."""

import json
import shutil

import pytest

from sim.network import LocalNode
from tests.integration.frail_market import FrailMarket, chat_body, only, plan

pytestmark = [pytest.mark.models, pytest.mark.slow]

CONFLICT = "two running nodes sign with this key"
TOLD = "another_node_uses_our_key"


def make_twin(frail: FrailMarket, original: LocalNode) -> LocalNode:
    """A copy of the folder, in use elsewhere: nothing of it that belongs to a process."""
    folder = frail.network.folder / "twin"
    left_out = shutil.ignore_patterns("*.sock", "*.lock", "outbox.sqlite*")
    shutil.copytree(original.data_dir, folder, ignore=left_out)
    return frail.call(frail.network.start_node, plan("twin", "0.02"))


def test_two_nodes_with_one_key_are_found_out(frail: FrailMarket) -> None:
    original, other = frail.nodes
    twin = make_twin(frail, original)
    assert twin.peer_id == original.peer_id
    try:
        frail.wait(lambda: "coordinator_attached" in twin.process.log_tail())
        # Their next reports show that both are alive, and both hear of it.
        frail.wait(lambda: CONFLICT in frail.summaries()[original.peer_id].health)
        frail.wait(lambda: TOLD in frail.log_of(original) and TOLD in frail.log_of(twin))
        shown = {
            n["node"]: n["health"] for n in json.loads(frail.market.command("nodes", "--json"))
        }
        assert CONFLICT in shown[original.peer_id]
        assert CONFLICT not in shown[other.peer_id]
        with frail.client() as http:
            elsewhere = http.post("/v1/chat/completions", json=chat_body())
            nowhere = http.post("/v1/chat/completions", json=chat_body(provider=only(original)))
        assert elsewhere.status_code == 200
        assert elsewhere.headers["x-capacloud-node"] == other.peer_id
        assert nowhere.status_code == 503
        assert nowhere.json()["error"]["code"] == "no_node_fits"
    finally:
        frail.kill(twin)
        frail.network.nodes.remove(twin)
        # The one that is left offers anew.
        frail.wait(lambda: "offering_anew" in frail.log_of(original))
        frail.wait(lambda: CONFLICT not in frail.summaries()[original.peer_id].health)
        frail.wait_healthy()
    with frail.client() as http:
        again = http.post("/v1/chat/completions", json=chat_body(provider=only(original)))
    assert again.status_code == 200
    frail.assert_sound()
