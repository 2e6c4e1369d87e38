"""`models`: a request that names several models is answered by the first that takes it."""

from typing import Any

import httpx
import pytest

from coordinator.buyer.errors import JobFailed
from protocol.errors import Code
from protocol.features import Feature
from tests.coordinator.gateway.fake_market import Script
from tests.coordinator.gateway.harness import Harness

MESSAGES = [{"role": "user", "content": "hi"}]
BODIES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": MESSAGES},
    "/v1/completions": {"prompt": "hi"},
    "/v1/responses": {"input": "hi"},
    "/v1/messages": {"messages": MESSAGES, "max_tokens": 5},
}


def said(response: httpx.Response) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    whole = response.json()
    assert isinstance(whole, dict)
    return whole


@pytest.mark.parametrize("path", BODIES)
def test_the_first_model_that_is_offered_answers_and_is_named(gateway: Harness, path: str) -> None:
    # Nobody offers the first, and the second makes vectors.
    names = {"model": "nowhere", "models": ["tiny-embedder", "tiny-chat:floor", "tiny-chat"]}
    response = gateway.post(path, BODIES[path] | names)
    assert said(response)["model"] == "tiny-chat"
    job_id = response.headers["x-capacloud-job-id"]
    assert response.headers["x-generation-id"] == job_id
    assert job_id in response.json()["id"]
    streamed = gateway.post(path, BODIES[path] | names | {"stream": True})
    assert streamed.headers["x-generation-id"] == streamed.headers["x-capacloud-job-id"]
    assert '"model":"tiny-chat"' in streamed.text.replace('": "', '":"')


def test_models_alone_name_the_model_too(gateway: Harness) -> None:
    body = {"models": ["tiny-chat"], "messages": MESSAGES}
    assert said(gateway.post("/v1/chat/completions", body))["model"] == "tiny-chat"


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize(
    ("code", "tries", "status"), [(Code.NO_NODE_FITS, 2, 503), (Code.OUT_OF_FUNDS, 1, 402)]
)
def test_another_model_is_tried_where_it_may_help(
    gateway: Harness, code: Code, tries: int, status: int, is_streamed: bool
) -> None:
    gateway.market.script = Script(failure=JobFailed("no", code=code))
    body = {"model": "tiny-chat", "models": ["tiny-chat:nitro"], "messages": MESSAGES}
    response = gateway.post("/v1/chat/completions", body | {"stream": is_streamed})
    assert response.status_code == status
    specs = gateway.market.specs
    assert len(specs) == tries
    # Each is another request, and a job id stands for one.
    assert len({gateway.market.job_id_of(number) for number in range(tries)}) == tries


def test_nothing_is_tried_again_once_there_was_output(gateway: Harness) -> None:
    failure = JobFailed("gone", code=Code.NODE_LOST, delivered=True, amount_nano=1)
    gateway.market.script = Script(failure=failure, failure_after=2)
    body = {"model": "tiny-chat", "models": ["tiny-chat:nitro"], "messages": MESSAGES}
    assert gateway.post("/v1/chat/completions", body).status_code == 502
    streamed = gateway.post("/v1/chat/completions", body | {"stream": True})
    assert "node_lost" in streamed.text
    assert len(gateway.market.specs) == 2


@pytest.mark.parametrize(
    ("models", "param"),
    [([""], "models[0]"), ([5], "models[0]"), (["a"] * 9, "models"), ({}, "models")],
)
def test_wrong_lists_are_refused(gateway: Harness, models: object, param: str) -> None:
    body = {"model": "tiny-chat", "models": models, "messages": MESSAGES}
    response = gateway.post("/v1/chat/completions", body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize("required", [True, False, None])
def test_nodes_must_always_be_able_to_do_what_is_asked(
    gateway: Harness, required: bool | None
) -> None:
    gateway.market.features = frozenset(Feature)
    body = {"model": "tiny-chat", "messages": MESSAGES, "logprobs": True, "min_p": 0.1}
    provider = {"require_parameters": required}
    said(gateway.post("/v1/chat/completions", body | {"provider": provider}))
    assert gateway.market.specs[-1].constraints.features == ("logprobs", "sampling")
