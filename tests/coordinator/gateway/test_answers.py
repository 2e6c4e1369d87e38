"""What the routes that buy nothing answer with is what GET /openapi.json says of them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from coordinator.gateway.http.query import QueryParameter
from coordinator.gateway.http.routes import Route
from protocol.grants import KeyUse
from protocol.messages import Task
from protocol.services import UsageAsk, UsageReply
from tests.coordinator.batches.service_maker import chat_lines, jsonl
from tests.coordinator.gateway.described import OPERATIONS, ROUTES
from tests.coordinator.gateway.fake_market import DIGESTS, NAMES, FakeRecords
from tests.coordinator.gateway.harness import Harness
from tests.coordinator.gateway.test_batches import batch_gateway, ended, upload

TYPED = [route for route in ROUTES if route.answer is not None and route.answer.json is not None]
ON_FILE = ("/v1/files", "/v1/batches")
PLAIN = [route for route in TYPED if not route.template.startswith(ON_FILE)]
PARAMETERS = {
    "model": NAMES[Task.CAUSAL_LM],
    "version": DIGESTS[Task.CAUSAL_LM][:16],
    "id": FakeRecords.job_id,
}


@pytest.fixture
def filing_gateway(tmp_path: Path) -> Iterator[Harness]:
    with batch_gateway(tmp_path) as found:
        yield found


def ask(gateway: Harness, route: Route, **parameters: str) -> httpx.Response:
    """One request, whose answer is checked against the description."""
    template = re.sub(r"\{(\w+)(:\w+)?\}", r"{\1}", route.template)
    query = {"id": FakeRecords.job_id} if route.template == "/v1/generation" else None
    path = template.format(**PARAMETERS | parameters)
    answer = gateway.request(route.method, path, params=query)
    OPERATIONS[route.method, template].validate_response(answer)
    return answer


@pytest.mark.parametrize("route", PLAIN, ids=lambda route: f"{route.method} {route.template}")
def test_answers_are_as_described(gateway: Harness, route: Route) -> None:
    assert ask(gateway, route).status_code == 200


class EmptyRecords(FakeRecords):
    """The books of an account that has bought nothing, with a key without limits."""

    async def usage(self, client: Any, ask: UsageAsk) -> UsageReply:
        return UsageReply(())

    async def key_use(self, key_id: str) -> KeyUse:
        use = await super().key_use(key_id)
        return KeyUse(use.id, use.label, use.created_at_ms, None, 0, 0, 60)


@pytest.mark.parametrize("route", PLAIN, ids=lambda route: f"{route.method} {route.template}")
def test_answers_of_an_idle_market_are_as_described(gateway: Harness, route: Route) -> None:
    gateway.market.nodes = 0
    gateway.market.records = EmptyRecords()
    answer = ask(gateway, route)
    assert route.answer is not None
    assert answer.status_code == route.answer.statuses[-1]


@pytest.mark.parametrize("task", list(Task))
def test_models_of_every_task_are_as_described(gateway: Harness, task: Task) -> None:
    for route in PLAIN:
        if "{model:path}" in route.template:
            version = DIGESTS[task][:16]
            assert ask(gateway, route, model=NAMES[task], version=version).status_code == 200


def test_files_and_batches_are_as_described(filing_gateway: Harness) -> None:
    gateway = filing_gateway
    unasked = {(route.method, route.template): route for route in TYPED if route not in PLAIN}
    assert ask(gateway, unasked["GET", "/v1/files"]).json()["data"] == []
    assert ask(gateway, unasked["GET", "/v1/batches"]).json()["data"] == []
    body = {"endpoint": "/v1/chat/completions", "completion_window": "24h"}
    for lines in (chat_lines(2), ["no request"]):
        file = posted(unasked, "/v1/files", upload(gateway, jsonl(lines)))
        labels = {"input_file_id": file["id"], "metadata": {"of": "a test"}}
        created = gateway.post("/v1/batches", body | labels)
        batch = posted(unasked, "/v1/batches", created)
        ended(gateway, batch["id"])
        ids = {"file_id": file["id"], "batch_id": batch["id"]}
        # Deletes come last.
        for route in sorted(unasked.values(), key=lambda route: route.method, reverse=True):
            assert ask(gateway, route, **ids).status_code == 200


def posted(unasked: Any, template: str, answer: httpx.Response) -> Any:
    """The body of what a POST answered, which is checked."""
    unasked.pop(("POST", template), None)
    assert answer.status_code == 200
    # The check reads the request, too, and a form was sent piece by piece.
    answer.request.read()
    OPERATIONS["POST", template].validate_response(answer)
    return answer.json()


def test_described_limits_of_a_form_are_those_that_are_kept(filing_gateway: Harness) -> None:
    (form,) = (route.form for route in ROUTES if route.form)
    for field in form:
        schema = field.schema
        within = [schema.get("minimum"), schema.get("maximum"), *schema.get("enum", ())]
        for value in within:
            if value is not None:
                answer = upload(filing_gateway, b"x", **{field.name: str(value)})
                assert answer.status_code == 200, answer.text
        beyond = ["no such word"]
        if "minimum" in schema:
            beyond += [str(schema["minimum"] - 1), str(schema["maximum"] + 1)]
        for value in beyond:
            answer = upload(filing_gateway, b"x", **{field.name: value})
            assert answer.status_code == 400
            param = field.name.replace("[", ".").removesuffix("]")
            assert answer.json()["error"]["param"] == param


@pytest.mark.parametrize("body", [{}, {"live": "yes"}, {"live": True, "more": 1}])
def test_a_field_too_few_too_many_or_of_another_type_is_noticed(body: Any) -> None:
    live = OPERATIONS["GET", "/v2/health/live"]
    headers = {"content-type": "application/json"}
    stream = httpx.ByteStream(json.dumps(body).encode())
    transport = httpx.MockTransport(lambda _: httpx.Response(200, headers=headers, stream=stream))
    with httpx.Client(transport=transport) as client:
        assert not live.is_valid_response(client.get("http://gateway"))


QUERIES = [(route, parameter) for route in ROUTES for parameter in route.query]


@pytest.mark.parametrize(
    ("route", "parameter"), QUERIES, ids=[f"{r.template} {p.name}" for r, p in QUERIES]
)
def test_described_limits_of_a_query_are_those_that_are_kept(
    gateway: Harness, route: Route, parameter: QueryParameter
) -> None:
    path = route.template.format(**PARAMETERS)
    schema = parameter.schema
    beyond = ["a" * 5]
    if "maximum" in schema:
        beyond += ["0", str(schema["maximum"] + 1), "1.5", "9" * 5_000, "-1", ""]
    if parameter.name == "purpose":
        # Any text will do: of an unknown purpose there are no files.
        beyond = []
    for value in beyond:
        refused = gateway.get(path, params={parameter.name: value})
        assert refused.status_code in (400, 404), value
        assert refused.json()["error"]["param"] == parameter.name
    for value in (schema.get("minimum"), schema.get("maximum"), *schema.get("enum", ())):
        if value is not None:
            assert gateway.get(path, params={parameter.name: value}).status_code != 400
    if parameter.is_required:
        assert gateway.get(path).json()["error"]["param"] == parameter.name
