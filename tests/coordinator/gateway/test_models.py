"""GET /v1/models, /health and /metrics."""

import pytest
import trio

from coordinator.gateway.config import GatewayConfig
from protocol.features import Feature
from protocol.messages import Task
from tests.coordinator.gateway.fake_market import DIGESTS
from tests.coordinator.gateway.harness import Harness, exchange, harness
from tests.coordinator.gateway.test_chat import body, error_of


def test_the_list_has_openais_fields_and_ours(gateway: Harness) -> None:
    answer = gateway.get("/v1/models").json()
    assert answer["object"] == "list"
    chat = answer["data"][0]
    assert {"id", "object", "created", "owned_by"} <= set(chat)
    assert (chat["id"], chat["object"], chat["task"]) == ("tiny-chat", "model", "causal_lm")
    assert chat["nodes"] == 3
    assert chat["max_model_len"] == 2_048
    assert chat["manifest_digest"] == DIGESTS[Task.CAUSAL_LM]
    assert chat["price_nano"]["from"]["output_per_mtok"] == 80_000_000
    assert chat["price_nano"]["to"]["output_per_mtok"] == 160_000_000


def test_the_list_says_what_a_model_can_do(gateway: Harness) -> None:
    gateway.market.features = frozenset({Feature.CHAT, Feature.TOOLS})
    models = {model["id"]: model for model in gateway.get("/v1/models").json()["data"]}
    chat = models["tiny-chat"]
    assert chat["context_length"] == chat["max_model_len"] == 2_048
    assert chat["capabilities"] == ["chat", "tools"]
    assert {"tools", "tool_choice", "temperature"} <= set(chat["supported_parameters"])
    assert not {"logprobs", "response_format", "min_p"} & set(chat["supported_parameters"])
    assert chat["quantizations"] == ["bf16"]
    # Credits, as OpenRouter writes dollars.
    assert chat["pricing"] == {
        "prompt": "0.00000002",
        "completion": "0.00000008",
        "image": "0.000005",
        "request": "0",
        "tensor": "0.000000001",
        "input_cache_read": "0.00000002",
    }
    assert models["tiny-embedder"]["dimensions"] == 3
    assert models["tiny/classifier"]["architecture"]["modality"] == "image->labels"


@pytest.mark.parametrize("path", ["tiny-chat", "tiny/classifier", "tiny%2Fclassifier"])
def test_one_model_by_name_with_or_without_slash(gateway: Harness, path: str) -> None:
    assert gateway.get(f"/v1/models/{path}").json()["id"] == path.replace("%2F", "/")


def test_an_unknown_model_is_404(gateway: Harness) -> None:
    response = gateway.get("/v1/models/gpt-9")
    assert response.status_code == 404
    assert error_of(response)["code"] == "model_not_found"


def test_health_needs_no_key(gateway: Harness) -> None:
    response = gateway.get("/health", headers={"authorization": ""})
    assert (response.status_code, response.json()["status"]) == (200, "ok")
    gateway.market.nodes = 0
    gateway.clock.monotonic_s += 1
    response = gateway.get("/health")
    assert response.status_code == 503
    assert response.json()["reason"] == "no node offers anything"


def test_a_stuck_market_is_not_healthy(gateway: Harness, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("coordinator.gateway.http.system_routes._ANSWER_WITHIN_S", 0.05)

    async def hang(_market: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr("coordinator.gateway.http.system_routes._health", hang)
    assert gateway.get("/health").json()["reason"] == "the market does not answer"


def test_metrics_have_vllms_names(gateway: Harness) -> None:
    gateway.post("/v1/chat/completions", body())
    gateway.post("/v1/chat/completions", body(stream=True))
    gateway.post("/v1/chat/completions", body(model="gpt-9"))
    response = gateway.get("/metrics", headers={"authorization": ""})
    assert response.headers["content-type"].startswith("text/plain")
    for line in (
        'capacloud_prompt_tokens_total{model_name="tiny-chat"} 14.0',
        'capacloud_generation_tokens_total{model_name="tiny-chat"} 10.0',
        'capacloud_request_success_total{finished_reason="stop",model_name="tiny-chat"} 2.0',
        'capacloud_time_to_first_token_seconds_count{model_name="tiny-chat"} 1.0',
        'capacloud_e2e_request_latency_seconds_count{model_name="tiny-chat"} 2.0',
        'capacloud_jobs_total{outcome="unknown_model",task="causal_lm"} 1.0',
        'capacloud_jobs_total{outcome="stop",task="causal_lm"} 2.0',
        'capacloud_http_requests_total{route="/v1/chat/completions",status="404"} 1.0',
        "capacloud_gateway_overhead_seconds_count 2.0",
        "capacloud_num_requests_running 1.0",
        'capacloud_offers{model_name="tiny-chat"} 3.0',
        "capacloud_nodes 3.0",
    ):
        assert line in response.text.splitlines(), line
    assert "gpt-9" not in response.text


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_was_offered_lately_is_503_and_not_404(stream: bool) -> None:
    with harness(GatewayConfig(model_within_s=0.01)) as gateway:
        gateway.market.hidden = {"tiny-chat"}
        asked = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}]}
        response = gateway.post("/v1/chat/completions", asked | {"stream": stream})
        assert response.status_code == 404
        gateway.market.expected = {"tiny-chat"}
        assert gateway.get("/v1/models/tiny-chat").status_code == 503
        asked_for = len(gateway.market.specs)
        response = gateway.post("/v1/chat/completions", asked | {"stream": stream})
        assert response.status_code == 503
        assert response.json()["error"]["code"] == "no_node_yet"
        assert response.headers["retry-after"] == "1"
        assert response.headers["x-should-retry"] == "true"
    assert len(gateway.market.specs) == asked_for


def test_a_request_is_held_until_a_node_of_its_model_is_back(gateway: Harness) -> None:
    gateway.market.hidden = gateway.market.expected = {"tiny-chat"}
    asked = {"model": "tiny-chat", "messages": [{"role": "user", "content": "hi"}]}

    async def ask() -> int:
        running = exchange(gateway.app, "/v1/chat/completions", asked)
        gateway.in_trio(lambda: setattr(gateway.market, "hidden", set()))
        status: int = (await running.next())["status"]
        await running.task
        return status

    assert gateway.run(ask()) == 200
