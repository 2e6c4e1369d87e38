"""Every route that buys, with every kind of bad input: a typed refusal in the dialect's own shape,
never a 500, and nothing bought."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import pytest

from coordinator.gateway.http.openai.routes import JOB_ROUTES
from protocol.messages import Task
from tests.coordinator.gateway.fake_market import NAMES
from tests.coordinator.gateway.harness import Harness
from tests.coordinator.gateway.test_chat import error_of

PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(64)).decode()
MESSAGE = {"role": "user", "content": "hi"}
INPUTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [MESSAGE], "stream": False, "max_tokens": 5},
    "/v1/completions": {"prompt": "hi", "stop": ["x"], "temperature": 0.5},
    "/v1/embeddings": {"input": ["hi"], "encoding_format": "float"},
    "/v1/images/classifications": {"image": PNG, "top_k": 2},
}
PROVIDER = {
    "sort": "price",
    "order": [],
    "only": [],
    "ignore": [],
    "allow_fallbacks": True,
    "max_price": {"prompt": 1},
    "max_cost": "1",
    "max_latency": 5,
    "quantizations": ["bf16"],
    "region": "eu",
    "isolation": "none",
    "data_collection": "deny",
    "zdr": False,
}
GENERATION = {
    "stream_options": {"include_usage": True},
    "max_completion_tokens": 5,
    "top_p": 0.5,
    "top_k": 5,
    "seed": 1,
    "ignore_eos": True,
    "n": 1,
    "tools": [],
    "tool_choice": "none",
    "response_format": {"type": "text"},
    "logit_bias": {},
}
HOSTILE = [
    True,
    0,
    -1,
    2**70,
    1e308,
    "",
    "x" * 3_000,
    "\ud800",
    "a\r\nx-injected: 1",
    [],
    [None],
    [[1]],
    [{}],
    ["\udfff"],
    {},
    {"": {}},
    {"type": ["text"], "by": [], "prompt": -1, "text": 5, "role": {}, "content": {}},
]
RAW_BODIES = [
    b"",
    b"null",
    b"[]",
    b'"x"',
    b"{",
    b'{"model":',
    b"\xff\xfe",
    b"\x00" * 10,
    b'{"model": NaN}',
    b'{"model": Infinity}',
    b'{"model": 1e999}',
    b'{"model": ' + b"9" * 10_000 + b"}",
    b"[" * 30_000,
    b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
    b'{"z":[' + b"{}," * 200_000 + b"{}]}",
    b"{}" + b" " * 100_000 + b"{}",
    b'{"model": "a", "model": {}}',
]


def example(template: str, task: Task) -> dict[str, Any]:
    return {"model": NAMES[task], "provider": dict(PROVIDER)} | INPUTS[template]


def variants(body: dict[str, Any], task: Task) -> Iterator[tuple[str, dict[str, Any]]]:
    """The body with one value replaced, at each place where a value stands."""
    optional = GENERATION if task is Task.CAUSAL_LM else {}
    for value in HOSTILE:
        for name in {**body, **optional}:
            yield name, body | {name: value}
        for name in PROVIDER:
            yield f"provider.{name}", body | {"provider": PROVIDER | {name: value}}
        if "messages" in body:
            for name in ("role", "content", "tool_calls", "name"):
                yield f"messages.{name}", body | {"messages": [MESSAGE | {name: value}]}
            yield "messages.item", body | {"messages": [MESSAGE, value]}
            yield "part", body | {"messages": [{"role": "user", "content": [value]}]}


@pytest.mark.parametrize("route", JOB_ROUTES, ids=lambda route: route.template)
def test_an_example_of_each_route_is_lawful(gateway: Harness, route: Any) -> None:
    assert gateway.post(route.template, example(route.template, route.task)).status_code == 200


@pytest.mark.parametrize("route", JOB_ROUTES, ids=lambda route: route.template)
def test_a_hostile_value_in_any_place_is_refused_or_harmless(gateway: Harness, route: Any) -> None:
    body = example(route.template, route.task)
    for place, changed in variants(body, route.task):
        bought = len(gateway.market.specs)
        response = gateway.request(
            "POST",
            route.template,
            content=json.dumps(changed).encode(),
            headers={"content-type": "application/json"},
        )
        assert "x-injected" not in response.headers
        if response.status_code == 200:
            continue
        why = f"{place} = {str(changed)[:200]}: {response.text[:200]}"
        assert 400 <= response.status_code < 500, why
        error = error_of(response)
        assert error["type"] == "invalid_request_error", why
        assert error["message"], why
        # An unknown name goes to the market, which knows it as little.
        assert len(gateway.market.specs) == bought or response.status_code == 404, why


@pytest.mark.parametrize("route", JOB_ROUTES, ids=lambda route: route.template)
@pytest.mark.parametrize(
    "content_type", ["application/json", "", "multipart/form-data; boundary=b"]
)
def test_a_hostile_body_is_refused(gateway: Harness, route: Any, content_type: str) -> None:
    for content in RAW_BODIES:
        response = gateway.request(
            "POST", route.template, content=content, headers={"content-type": content_type}
        )
        assert response.status_code in (400, 413, 415), content[:40]
        assert error_of(response)["code"]
    assert gateway.market.specs == []


@pytest.mark.parametrize("route", JOB_ROUTES, ids=lambda route: route.template)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW"])
def test_another_method_is_told_the_right_one(gateway: Harness, route: Any, method: str) -> None:
    response = gateway.request(method, route.template)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("route", JOB_ROUTES, ids=lambda route: route.template)
def test_a_model_of_another_task_is_a_bad_request(gateway: Harness, route: Any) -> None:
    for task, name in NAMES.items():
        if task is not route.task:
            body = example(route.template, route.task) | {"model": name}
            response = gateway.post(route.template, body)
            assert response.status_code == 400
            assert error_of(response)["code"] == "wrong_task"
    assert gateway.market.specs == []
