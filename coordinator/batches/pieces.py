"""Lines of a batch that are bought together, and what becomes of their answers. Pure.

Embedding lines of one model and the same wishes become one job of many texts, so that what a job
costs in signatures and round trips is shared; a line's tokens are its own, and its cost is its
share of the job's by tokens.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from coordinator.batches.lines import PlannedLine
from coordinator.gateway.http.dialect import ChoiceAnswer, JobCall
from coordinator.gateway.http.openai.embeddings import EmbeddingCall, read_output
from coordinator.gateway.http.responses import to_json
from coordinator.gateway.market_side.running import WholeAnswer
from coordinator.gateway.orders import Order, PlainOrder
from protocol.codec import encode
from protocol.messages import Task
from protocol.money import split_by_weight
from protocol.payload import Chunk, EmbeddingInput, EmbeddingOutput
from protocol.pricing import Units

# One job of many lines: enough that its signatures are nothing beside its work, and a second or
# two of a slow node, so that little is lost with it.
GROUP_TEXTS_MAX = 256
GROUP_BYTES_MAX = 256 * 1024
# Lines of so many models may come mixed, and are still put together.
_GROUPS_OPEN_MAX = 8


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
            cached_tokens=total.cached_tokens + units.cached_tokens,
        )
    return total
