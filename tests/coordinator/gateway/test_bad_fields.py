"""Every route that buys, with something wrong at each place of its example requests: a refusal in
the dialect's own shape or an answer, never a 500, and nothing bought that is refused."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from coordinator.gateway.http.openapi.examples import REQUESTS
from protocol.messages import Task
from tests.coordinator.gateway.described import OPERATIONS, ROUTES
from tests.coordinator.gateway.fake_market import NAMES
from tests.coordinator.gateway.harness import Harness

Path = tuple[str | int, ...]

INFER = "/v2/models/{model}/infer"
TENSORS: dict[str, Any] = {
    "id": "one",
    "inputs": [
        {
            "name": "x",
            "datatype": "FP32",
            "shape": [1, 2],
            "data": [1, 2.5],
            "parameters": {"binary_data": False},
        }
    ],
    "outputs": [{"name": "sum", "parameters": {"binary_data": False}}],
    "parameters": {"binary_data_output": False},
}
BODIES: dict[str, list[dict[str, Any]]] = {
    route.template: [
        {name: value for name, value in body.items() if not name.startswith("stream")}
        | {"model": NAMES[route.job.task]}
        for body in REQUESTS[route.template]
    ]
    for route in ROUTES
    if route.job is not None
} | {INFER: [TENSORS]}

WRONG: tuple[Any, ...] = (
    True,
    0,
    -1,
    2**70,
    "",
    "x" * 3_000,
    "\ud800",
    "a\r\nx-injected: 1",
    [],
    [None],
    {},
    {"type": ["text"], "role": {}, "content": 5},
)
NUMBERS = (0.5, -0.0, 1e-320, 1e308, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63, -(2**63) - 1)

every_route = pytest.mark.parametrize("template", list(BODIES))


def places(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Each value within, with the way to it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    for name, item in inner:
        yield (*path, name), item
        if isinstance(item, dict | list):
            yield from places(item, (*path, name))


def objects(body: dict[str, Any]) -> Iterator[Path]:
    yield ()
    yield from (path for path, value in places(body) if isinstance(value, dict))


def changed(body: dict[str, Any], path: Path, value: Any) -> dict[str, Any]:
    """A copy with another value there."""
    whole = copy.deepcopy(body)
    found: Any = whole
    for name in path[:-1]:
        found = found[name]
    found[path[-1]] = value
    return whole


def send(gateway: Harness, template: str, text: str) -> httpx.Response:
    path = template.replace("{model}", NAMES[Task.TENSOR])
    headers = {"content-type": "application/json"}
    return gateway.request("POST", path, content=text.encode(), headers=headers)


def check(gateway: Harness, template: str, text: str) -> int:
    """The status of an answer or of a typed refusal."""
    bought = len(gateway.market.specs)
    answer = send(gateway, template, text)
    why = f"{text[:300]}: {answer.text[:300]}"
    assert "x-injected" not in answer.headers
    if answer.status_code == 200:
        return 200
    assert 400 <= answer.status_code < 500, why
    OPERATIONS["POST", template].validate_response(answer)
    # An unknown name goes to the market, which knows it as little.
    assert len(gateway.market.specs) == bought or answer.status_code == 404, why
    return answer.status_code


@every_route
def test_an_example_with_a_wrong_value_is_refused_or_harmless(
    gateway: Harness, template: str
) -> None:
    seen: set[str] = set()
    for body in BODIES[template]:
        assert check(gateway, template, json.dumps(body)) == 200
        for path, value in places(body):
            is_number = isinstance(value, int | float) and not isinstance(value, bool)
            for wrong in WRONG + (NUMBERS if is_number else ()):
                text = json.dumps(changed(body, path, wrong))
                if text not in seen:
                    seen.add(text)
                    check(gateway, template, text)


@every_route
def test_an_unknown_name_in_any_object_is_refused_or_harmless(
    gateway: Harness, template: str
) -> None:
    for body in BODIES[template]:
        for path in objects(body):
            check(gateway, template, json.dumps(changed(body, (*path, "no_such_name"), 1)))


@every_route
def test_an_equal_name_or_half_a_surrogate_in_any_object_is_refused(
    gateway: Harness, template: str
) -> None:
    for body in BODIES[template]:
        for path in objects(body):
            both = changed(changed(body, (*path, "twice"), 1), (*path, "again"), 1)
            assert check(gateway, template, json.dumps(both).replace("again", "twice")) == 400
            half = changed(body, (*path, "\udfff"), 1)
            assert check(gateway, template, json.dumps(half)) == 400
    assert gateway.market.specs == []
