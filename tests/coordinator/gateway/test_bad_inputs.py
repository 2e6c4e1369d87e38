"""Every route that buys, with every kind of bad body, and those of OpenAI's API with bad values in
fields that examples have not: a typed refusal in the dialect's own shape, never a 500, and nothing
bought."""

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from coordinator.gateway.http.openai.routes import JOB_ROUTES
from coordinator.gateway.http.openapi.examples import REQUESTS
from coordinator.gateway.http.routes import JobRoute
from protocol.messages import Task
from tests.coordinator.gateway.described import OPERATIONS, ROUTES
from tests.coordinator.gateway.fake_market import NAMES
from tests.coordinator.gateway.harness import Harness
from tests.coordinator.gateway.test_chat import error_of

EVERY_ROUTE = [route.job for route in ROUTES if route.job is not None]
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(64)).decode()
MESSAGE = {"role": "user", "content": "hi"}
INPUTS: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [MESSAGE], "stream": False, "max_tokens": 5},
    "/v1/completions": {"prompt": "hi", "stop": ["x"], "temperature": 0.5},
    "/v1/embeddings": {"input": ["hi"], "encoding_format": "float"},
    "/v1/images/classifications": {"image": PNG, "top_k": 2},
    "/v1/rerank": {"query": "hi", "documents": ["a", {"text": "b"}], "top_n": 1},
    "/v2/rerank": {"query": "hi", "documents": ["a"], "return_documents": False},
    "/v1/tokenize": {
        "messages": [MESSAGE],
        "chat_template_kwargs": {},
        "add_special_tokens": False,
    },
    "/v1/detokenize": {"tokens": [1, 2]},
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
    "min_tokens": 2,
    "stop_token_ids": [2],
    "min_p": 0.5,
    "presence_penalty": 0.5,
    "repetition_penalty": 1.5,
    "logprobs": False,
    "echo": False,
    "chat_template_kwargs": {},
    "continue_final_message": False,
    "add_generation_prompt": True,
    "reasoning": {},
    "parallel_tool_calls": True,
    "guided_json": {"type": "object"},
    "guided_choice": ["a"],
    "structured_outputs": {"regex": "a"},
    "unknown_name": None,
}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SCHEMAS = ("type", "properties", "required", "items", "anyOf", "enum", "$ref", "$defs", "minimum")
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
            replayed = {"role": "assistant", "tool_calls": [value]}
            yield "call", body | {"messages": [replayed]}
            for name in CALL:
                replayed = {"role": "assistant", "tool_calls": [CALL | {name: value}]}
                yield f"call.{name}", body | {"messages": [replayed]}
            yield "tool", body | {"tools": [value]}
            for name in TOOL:
                yield f"tool.{name}", body | {"tools": [TOOL | {name: value}]}
            yield "allowed", body | {"tools": [TOOL], "tool_choice": {"function": value}}
        if optional:
            for name in SCHEMAS:
                yield f"schema.{name}", body | {"guided_json": {name: value}}
            for name in ("json", "regex", "choice", "grammar", "json_object", "other"):
                yield f"structured.{name}", body | {"structured_outputs": {name: value}}
        for name in ("tokens", "documents"):
            if name in body:
                yield f"{name}.item", body | {name: [value]}


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


every_route = pytest.mark.parametrize("route", EVERY_ROUTE, ids=lambda route: route.template)


def check_refusal(response: httpx.Response, route: JobRoute) -> None:
    """It has the shape that the description of the API has for it."""
    assert response.json()["error"]["message"]
    OPERATIONS["POST", route.template].validate_response(response)


@every_route
@pytest.mark.parametrize(
    "content_type", ["application/json", "", "multipart/form-data; boundary=b"]
)
def test_a_hostile_body_is_refused(gateway: Harness, route: JobRoute, content_type: str) -> None:
    for content in RAW_BODIES:
        response = gateway.request(
            "POST", route.template, content=content, headers={"content-type": content_type}
        )
        assert response.status_code in (400, 413, 415), content[:40]
        check_refusal(response, route)
    assert gateway.market.specs == []


@pytest.mark.parametrize(
    "template",
    # Of the other one, other methods are about a response by that name.
    [job.template for job in EVERY_ROUTE if job.template != "/v1/responses/input_tokens"],
)
@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "BREW"])
def test_another_method_is_told_the_right_one(gateway: Harness, template: str, method: str) -> None:
    response = gateway.request(method, template)
    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@every_route
def test_a_model_of_another_task_is_a_bad_request(gateway: Harness, route: JobRoute) -> None:
    for task, name in NAMES.items():
        if task is not route.task:
            body = REQUESTS[route.template][0] | {"model": name}
            response = gateway.post(route.template, body)
            assert response.status_code == 400
            check_refusal(response, route)
            # Anthropic's errors have no codes.
            assert response.json()["error"].get("code", "wrong_task") == "wrong_task"
    assert gateway.market.specs == []
