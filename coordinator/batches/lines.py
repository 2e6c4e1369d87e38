"""The lines of a batch: each read by the parser of its route, or refused. Pure."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.gateway.errors import ApiError, invalid
from coordinator.gateway.http.anthropic.routes import JOB_ROUTES as ANTHROPIC_ROUTES
from coordinator.gateway.http.dialect import JobCall
from coordinator.gateway.http.openai.routes import JOB_ROUTES as OPENAI_ROUTES
from coordinator.gateway.http.openai_responses.routes import JOB_ROUTES as RESPONSES_ROUTES
from coordinator.gateway.http.responses import to_json
from coordinator.gateway.http.routes import JobRoute
from coordinator.gateway.http.routing_params import with_provider
from coordinator.gateway.http.strict_json import Fields, parse_object

# OpenAI's bounds.
LINES_MAX = 50_000
EMBEDDING_INPUTS_MAX = 50_000
LINE_BYTES_MAX = 12 * 1024 * 1024
_CUSTOM_ID_CHARS_MAX = 512

# What only counts tokens is no work for a night.
_ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/v1/images/classifications",
    "/v1/messages",
    "/v1/rerank",
    "/v1/responses",
)
ENDPOINTS: Mapping[str, JobRoute] = {
    route.template: route
    for route in (*OPENAI_ROUTES, *RESPONSES_ROUTES, *ANTHROPIC_ROUTES)
    if route.template in _ENDPOINTS
}


class LineError(Exception):
    """The line is no request: its batch fails while it is validated."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.param = param


@dataclass(frozen=True, slots=True)
class LineEnvelope:
    """What a line says around its body."""

    custom_id: str
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class PlannedLine:
    """A line whose body is a good request. `number` counts from 0."""

    number: int
    custom_id: str
    call: JobCall


@dataclass(frozen=True, slots=True)
class RefusedLine:
    """A line whose body is not: it fails alone, and nothing is bought."""

    number: int
    custom_id: str
    error: ApiError


def read_envelope(text: bytes, endpoint: str) -> LineEnvelope:
    """Raises LineError."""
    try:
        fields = Fields(parse_object(text))
        custom_id = fields.text("custom_id", chars_max=_CUSTOM_ID_CHARS_MAX)
        method, url = fields.raw("method"), fields.raw("url")
    except ApiError as error:
        problem = error.problem
        code = "invalid_json_line" if problem.param is None else "invalid_request"
        message = problem.message.replace("the body", "the line")
        raise LineError(code, message, problem.param) from None
    if method != "POST":
        raise LineError("invalid_method", "method is POST", "method")
    if url != endpoint:
        raise LineError("mismatched_url", f"url is {endpoint}, as the batch's endpoint", "url")
    body = fields.raw("body")
    if not isinstance(body, dict):
        raise LineError("invalid_body", "body is an object: the request's own body", "body")
    return LineEnvelope(custom_id, body)


def read_line(
    number: int, text: bytes, endpoint: str, provider: Mapping[str, Any]
) -> PlannedLine | RefusedLine:
    """`provider` is what the batch's API key says of routing. Raises LineError."""
    envelope = read_envelope(text, endpoint)
    try:
        call = ENDPOINTS[endpoint].read(with_provider(Fields(envelope.body), provider))
        if call.is_streamed:
            raise invalid("a batch has no streams: leave stream out", "stream")
        if any(order.routing.fallbacks for order in call.orders):
            raise invalid("a line of a batch names one model", "models")
    except ApiError as error:
        return RefusedLine(number, envelope.custom_id, error)
    return PlannedLine(number, envelope.custom_id, call)


def count_inputs(envelope: LineEnvelope) -> int:
    """How many texts an embedding line has, as far as can be told without reading it."""
    given = envelope.body.get("input")
    return len(given) if isinstance(given, list) else 1


def error_line(
    line_id: str, custom_id: str, code: str, message: str, response: Mapping[str, Any] | None = None
) -> bytes:
    line = {
        "id": line_id,
        "custom_id": custom_id,
        "response": response,
        "error": {"code": code, "message": message},
    }
    return to_json(line) + b"\n"


def refused_line(line_id: str, custom_id: str, error: ApiError, *, endpoint: str) -> bytes:
    """A line that failed as its request would have: with the status and the body of that."""
    problem = error.problem
    body = json.loads(ENDPOINTS[endpoint].dialect.error_body(problem))
    response = {"status_code": problem.status, "request_id": line_id, "body": body}
    # Not every dialect has codes.
    code = str(body["error"].get("code") or problem.code)
    return error_line(line_id, custom_id, code, problem.message, response)
