"""Where a request's routing comes from: its body, headers, and the API key's defaults."""

import json
from typing import Any

import pytest

from protocol.messages import DataCollection, Objective
from tests.coordinator.gateway.fake_market import ROUTED_KEY
from tests.coordinator.gateway.harness import Harness

CHAT = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}]}
REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"json": CHAT}),
    ("/v1/completions", {"json": {"model": "tiny-chat", "prompt": "hi"}}),
    ("/v1/embeddings", {"json": {"model": "tiny-embedder", "input": "hi"}}),
    (
        "/v1/images/classifications",
        {"files": {"image": b"\x89PNG\r\n\x1a\n"}, "data": {"model": "tiny/classifier"}},
    ),
]


@pytest.mark.parametrize(("path", "request_"), REQUESTS)
def test_every_route_takes_its_routing_from_headers_and_the_key(
    gateway: Harness, path: str, request_: dict[str, Any]
) -> None:
    headers = {
        "authorization": f"Bearer {ROUTED_KEY}",
        "x-capacloud-provider": json.dumps({"sort": "latency", "region": "eu"}),
        "x-session-id": "s-1",
    }
    response = gateway.post(path, headers=headers, **request_)
    assert response.status_code == 200, response.text
    spec = gateway.market.specs[-1]
    assert spec.objective is Objective.LATENCY
    assert spec.constraints.regions == ("eu",)
    assert spec.constraints.data_collection is DataCollection.DENY
    assert spec.session == "s-1"


def test_a_header_is_refused_as_a_body_would_be(gateway: Harness) -> None:
    for text, param in (
        ('{"colour": "red"}', "provider.colour"),
        ("fast", "x-capacloud-provider"),
    ):
        refused = gateway.post("/v1/chat/completions", CHAT, headers={"x-capacloud-provider": text})
        assert refused.status_code == 400
        assert refused.json()["error"]["param"] == param
    assert gateway.market.specs == []
