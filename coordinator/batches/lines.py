"""The lines of a batch: read, grouped into jobs, and written as lines of its output. Pure.

A line goes through the parser and the writer of its route. Embedding lines of one model and the
same wishes become one job of many texts, so that what a job costs in signatures and round trips is
shared; a line's tokens are its own, and its cost is its share of the job's by tokens.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from coordinator.gateway.errors import ApiError, invalid
from coordinator.gateway.http.anthropic.routes import JOB_ROUTES as ANTHROPIC_ROUTES
from coordinator.gateway.http.dialect import ChoiceAnswer, JobCall
from coordinator.gateway.http.openai.embeddings import EmbeddingCall, read_output
from coordinator.gateway.http.openai.routes import JOB_ROUTES as OPENAI_ROUTES
from coordinator.gateway.http.openai_responses.routes import JOB_ROUTES as RESPONSES_ROUTES
from coordinator.gateway.http.responses import to_json
from coordinator.gateway.http.routes import JobRoute
from coordinator.gateway.http.routing_params import with_provider
from coordinator.gateway.http.strict_json import Fields, parse_object
from coordinator.gateway.market_side.running import WholeAnswer
from coordinator.gateway.orders import Order, PlainOrder
from protocol.codec import encode
from protocol.messages import Task
from protocol.money import split_by_weight
from protocol.payload import Chunk, EmbeddingInput, EmbeddingOutput
from protocol.pricing import Units

# OpenAI's bounds.
LINES_MAX = 50_000
EMBEDDING_INPUTS_MAX = 50_000
LINE_BYTES_MAX = 12 * 1024 * 1024
_CUSTOM_ID_CHARS_MAX = 512

# One job of many lines: enough that its signatures are nothing beside its work, and a second or
# two of a slow node, so that little is lost with it.
GROUP_TEXTS_MAX = 256
GROUP_BYTES_MAX = 256 * 1024
# Lines of so many models may come mixed, and are still put together.
_GROUPS_OPEN_MAX = 8

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


@dataclass(frozen=True, slots=True)
class Piece:
    """Lines that are bought together. More than one are embeddings, and one job."""

    lines: tuple[PlannedLine, ...]

    @property
    def orders(self) -> Sequence[Order]:
        calls = [line.call for line in self.lines]
        if len(calls) == 1:
            return calls[0].orders
        return (_merged([call for call in calls if isinstance(call, EmbeddingCall)]),)

    @property
    def model(self) -> str:
        return self.lines[0].call.orders[0].routing.model

    def halves(self) -> "tuple[Piece, Piece]":
        middle = len(self.lines) // 2
        return Piece(self.lines[:middle]), Piece(self.lines[middle:])


@dataclass(frozen=True, slots=True)
class LineAnswer:
    """The body of one line's answer, and what it used."""

    line: PlannedLine
    body: bytes
    units: Units
    cost_nano: int


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
    except ApiError as error:
        return RefusedLine(number, envelope.custom_id, error)
    return PlannedLine(number, envelope.custom_id, call)


def count_inputs(envelope: LineEnvelope) -> int:
    """How many texts an embedding line has, as far as can be told without reading it."""
    given = envelope.body.get("input")
    return len(given) if isinstance(given, list) else 1


def group(lines: Iterable[PlannedLine]) -> Iterator[Piece]:
    """Pieces of lines, about in their order."""
    groups: dict[object, _Group] = {}
    for line in lines:
        call = line.call
        key = _group_key(call)
        if key is None or not isinstance(call, EmbeddingCall):
            yield Piece((line,))
            continue
        if key in groups and not groups[key].has_room(call):
            yield groups.pop(key).piece()
        groups.setdefault(key, _Group()).add(line, call)
        if len(groups) > _GROUPS_OPEN_MAX:
            yield groups.pop(next(iter(groups))).piece()
    for members in groups.values():
        yield members.piece()


def write_answers(
    piece: Piece, choices: Sequence[ChoiceAnswer], *, created_s: int
) -> list[LineAnswer]:
    """The answer of each line. Raises ApiError if the node's output is broken."""
    if len(piece.lines) == 1:
        (line,) = piece.lines
        whole = [choice for choice in choices if isinstance(choice, WholeAnswer)]
        units = _sum_units(answer.outcome.units for answer in whole)
        cost_nano = sum(answer.outcome.amount_nano for answer in whole)
        return [LineAnswer(line, line.call.answer(choices, created_s), units, cost_nano)]
    (choice,) = choices
    assert isinstance(choice, WholeAnswer), "a job that failed has no answers"
    return list(_split(piece, choice, created_s))


def answer_line(line_id: str, answer: LineAnswer, request_id: str) -> bytes:
    head = to_json({"id": line_id, "custom_id": answer.line.custom_id})
    response = to_json({"status_code": 200, "request_id": request_id})
    return b'%b, "response": %b, "body": %b}, "error": null}\n' % (
        head.removesuffix(b"}"),
        response.removesuffix(b"}"),
        answer.body,
    )


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


def _group_key(call: JobCall) -> object | None:
    """Calls with the same key can be one job."""
    if not isinstance(call, EmbeddingCall) or call.order.input_bytes > GROUP_BYTES_MAX:
        return None
    routing, job_input = call.order.routing, call.order.job_input
    assert isinstance(job_input, EmbeddingInput)
    if routing.constraints.max_cost_nano is not None:
        return None  # it is said of one request
    return (routing, replace(job_input, texts=("-",)))


@dataclass(slots=True)
class _Group:
    """Embedding lines that are one job so far."""

    lines: list[PlannedLine] = field(default_factory=list)
    texts: int = 0
    text_bytes: int = 0

    def has_room(self, call: EmbeddingCall) -> bool:
        text_bytes = self.text_bytes + call.order.input_bytes
        return self.texts + call.texts <= GROUP_TEXTS_MAX and text_bytes <= GROUP_BYTES_MAX

    def add(self, line: PlannedLine, call: EmbeddingCall) -> None:
        self.lines.append(line)
        self.texts += call.texts
        self.text_bytes += call.order.input_bytes

    def piece(self) -> Piece:
        return Piece(tuple(self.lines))


def _merged(calls: Sequence[EmbeddingCall]) -> PlainOrder:
    texts: list[str] = []
    for call in calls:
        assert isinstance(call.order.job_input, EmbeddingInput)
        texts += call.order.job_input.texts
    first = calls[0].order
    assert isinstance(first.job_input, EmbeddingInput)
    size = sum(call.order.input_bytes for call in calls)
    return PlainOrder(
        Task.EMBEDDING,
        first.input_param,
        first.routing,
        replace(first.job_input, texts=tuple(texts)),
        size,
    )


def _split(piece: Piece, answer: WholeAnswer, created_s: int) -> Iterator[LineAnswer]:
    """Each line's part of a job of many texts, with sums that are exactly the job's."""
    calls = [line.call for line in piece.lines if isinstance(line.call, EmbeddingCall)]
    output = read_output(answer.data, sum(call.texts for call in calls))
    tokens = _tokens_by_line(calls, output, answer.outcome.units.input_tokens)
    costs_nano = split_by_weight(answer.outcome.amount_nano, tokens)
    start = 0
    for line, call, count, cost_nano in zip(piece.lines, calls, tokens, costs_nano, strict=True):
        vectors = output.vectors[start : start + call.texts]
        start += call.texts
        units = Units(input_tokens=count)
        outcome = replace(answer.outcome, units=units, amount_nano=cost_nano)
        own = WholeAnswer(
            answer.opened,
            [Chunk(data=encode(EmbeddingOutput(output.dimensions, vectors)))],
            outcome,
        )
        yield LineAnswer(line, call.answer([own], created_s), units, cost_nano)


def _tokens_by_line(
    calls: Sequence[EmbeddingCall], output: EmbeddingOutput, total: int
) -> Sequence[int]:
    """As the node counted each text; of a node that does not say, or whose counts do not add up to
    what it billed, by the texts' bytes."""
    if len(output.tokens) == len(output.vectors) and sum(output.tokens) == total:
        found, start = [], 0
        for call in calls:
            found.append(sum(output.tokens[start : start + call.texts]))
            start += call.texts
        return found
    return split_by_weight(total, [call.order.input_bytes for call in calls])


def _sum_units(all_units: Iterable[Units]) -> Units:
    total = Units()
    for units in all_units:
        total = Units(
            total.input_tokens + units.input_tokens,
            total.output_tokens + units.output_tokens,
            total.images + units.images,
        )
    return total
