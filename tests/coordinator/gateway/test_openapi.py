"""The description of the API: it is what the routes do, and no request of its shape breaks one."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode

from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.errors import ApiError
from coordinator.gateway.http.openapi.document import make_document
from coordinator.gateway.http.openapi.examples import REQUESTS
from coordinator.gateway.http.openapi.page import make_page
from coordinator.gateway.http.routes import JobRoute
from coordinator.gateway.http.strict_json import Fields, parse_object
from tests.coordinator.gateway.described import DOCUMENT, OPERATIONS, ROUTES
from tests.coordinator.gateway.fake_market import API_KEY, NAMES
from tests.coordinator.gateway.harness import Harness

JOBS = [route.job for route in ROUTES if route.job is not None]
PAGE = Path(__file__).parents[3] / "docs" / "api.md"

over_jobs = pytest.mark.parametrize("job", JOBS, ids=[job.template for job in JOBS])
fuzzing = settings(
    max_examples=20,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def schema_of(job: JobRoute) -> dict[str, Any]:
    operation = DOCUMENT["paths"][job.template]["post"]
    schema: dict[str, Any] = operation["requestBody"]["content"]["application/json"]["schema"]
    return schema


def test_the_page_is_made_from_the_routes_as_they_are() -> None:
    assert PAGE.read_text() == make_page(DOCUMENT), "run python -m coordinator.gateway.http.openapi"


def test_every_route_is_described_and_the_description_is_public(gateway: Harness) -> None:
    answer = gateway.request("GET", "/openapi.json", headers={"authorization": ""})
    assert answer.json() == DOCUMENT
    described = {
        (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    assert len(described) == len(ROUTES)
    assert ("GET", "/v1/models/{model}") in described
    assert ("GET", "/openapi.json") in described


def test_limits_follow_the_settings() -> None:
    small = make_document(ROUTES, GatewayConfig(body_bytes_max=1_234))
    limits = {limit["name"]: limit["value"] for limit in small["info"]["x-limits"]}
    assert limits["body_bytes_max"] == 1_234


@over_jobs
def test_examples_are_answered_as_described(gateway: Harness, job: JobRoute) -> None:
    for example in REQUESTS[job.template]:
        answer = gateway.post(job.template, example | {"model": NAMES[job.task]})
        assert answer.status_code == 200, answer.text
        described = DOCUMENT["paths"][job.template]["post"]["responses"]["200"]["content"]
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind in described
        if kind == "application/json":
            assert set(answer.json()) == set(described[kind]["schema"]["properties"])


@over_jobs
def test_described_limits_are_those_that_are_kept(job: JobRoute) -> None:
    example = REQUESTS[job.template][0]
    checked = 0
    for name, part in schema_of(job)["properties"].items():
        for wrong in beyond(part):
            checked += 1
            with pytest.raises(ApiError) as raised:
                job.read(Fields(example | {name: wrong}))
            assert (raised.value.problem.param or "").startswith(name)
    assert checked


def beyond(schema: dict[str, Any]) -> Iterator[object]:
    """Values just outside of a schema."""
    if "anyOf" in schema:
        return
    if "minimum" in schema:
        yield from (schema["minimum"] - 1, schema["maximum"] + 1)
    if "maxLength" in schema:
        yield "x" * (schema["maxLength"] + 1)
    if "maxItems" in schema:
        yield ["x"] * (schema["maxItems"] + 1)
    if "enum" in schema:
        yield "no such word"


@over_jobs
def test_what_must_be_given_is_described_so(job: JobRoute) -> None:
    example = REQUESTS[job.template][0]
    for name in schema_of(job)["required"]:
        with pytest.raises(ApiError) as raised:
            job.read(Fields({key: value for key, value in example.items() if key != name}))
        assert raised.value.problem.param == name


@pytest.mark.parametrize(
    ("operation", "mode"),
    [
        pytest.param(operation, mode, id=f"{operation.label} {mode.value}")
        for operation in OPERATIONS.values()
        for mode in GenerationMode
        # Nothing can be wrong with a request that has no body and no parameters.
        if mode is GenerationMode.POSITIVE
        or operation.body
        or operation.path_parameters
        or operation.query
    ],
)
def test_no_request_breaks_a_route(gateway: Harness, operation: Any, mode: GenerationMode) -> None:
    @fuzzing
    @given(case=operation.as_strategy(generation_mode=mode), knows_model=st.booleans())
    def send(case: Any, knows_model: bool) -> None:
        if isinstance(case.body, dict) and knows_model:
            case.body["model"] = "tiny-chat"
        request = case.as_transport_kwargs(base_url="http://gateway")
        headers = {k: v for k, v in request["headers"].items() if k.lower() == "content-type"}
        content = request.get("data")
        if "json" in request:
            content = json.dumps(request["json"]).encode()
        answer = gateway.request(
            request["method"],
            request["url"],
            content=content,
            headers=headers | {"authorization": f"Bearer {API_KEY}"},
        )
        assert answer.status_code < 500, answer.text
        operation.validate_response(answer)

    send()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@over_jobs
def test_readers_refuse_what_they_cannot_read_and_never_break(job: JobRoute) -> None:
    @settings(fuzzing, max_examples=200)
    @given(st.data())
    def read(data: st.DataObject) -> None:
        body = copy.deepcopy(data.draw(st.sampled_from(REQUESTS[job.template])))
        for _ in range(data.draw(st.integers(1, 3))):
            place: Any = body
            key = data.draw(st.sampled_from(list(place)))
            while isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
                place = place[key]
                keys = list(place) if isinstance(place, dict) else list(range(len(place)))
                key = data.draw(st.sampled_from(keys))
            place[key] = data.draw(JSON)
        try:
            job.read(Fields(parse_object(json.dumps(body).encode())))
        except ApiError as error:
            refusals.add(error.problem.status)

    refusals: set[int] = set()
    read()
    assert refusals <= {400, 413}
