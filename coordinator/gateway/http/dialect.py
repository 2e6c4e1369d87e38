"""What differs between the APIs that the gateway speaks. A new API is a folder beside `openai`: a
`Dialect`, a `JobCall` per route, and their rows in `JOB_ROUTES`."""

from collections.abc import Sequence
from typing import Protocol

from coordinator.buyer.result import PurchaseResult
from coordinator.gateway.errors import ApiError, Headers, Problem
from coordinator.gateway.http.responses import Response, header
from coordinator.gateway.market_side.running import StartedAnswer, WholeAnswer
from coordinator.gateway.orders import Order
from protocol.money import divide_up
from protocol.payload import Chunk


class Dialect(Protocol):
    """How one API writes errors and frames its streams."""

    @property
    def request_id_header(self) -> bytes:
        """Where its clients look for the id of a request. `x-request-id` has it always."""
        ...

    def status_of(self, problem: Problem) -> int:
        """The status of a problem, where the API has one of its own for it."""
        ...

    @property
    def stream_headers(self) -> Headers:
        """The headers of a stream, its content type among them."""
        ...

    @property
    def keepalive(self) -> bytes:
        """What clients of a stream ignore, and proxies take for a sign of life."""
        ...

    def error_body(self, problem: Problem) -> bytes:
        """The body of a response."""
        ...

    def error_event(self, problem: Problem) -> bytes:
        """What ends a stream that breaks."""
        ...


class StreamWriter(Protocol):
    """Encodes the events of one answer, or of several: `choice` is an index into the call's orders.

    A dialect that knows text, reasoning and tool calls reads them out of chunks with an
    `AnswerParser` of `coordinator.gateway.chat`.
    """

    def first(self) -> bytes:
        """What opens the stream, before any output."""
        ...

    def add(self, choice: int, chunks: Sequence[Chunk]) -> bytes:
        """More of a choice's output; empty if nothing of it is to be seen so far.

        Raises RemoteProtocolError if the node's output is broken.
        """
        ...

    def end(self, choice: int, outcome: PurchaseResult) -> bytes:
        """What follows a choice's last output."""
        ...

    def fail(self, choice: int, problem: Problem) -> bytes:
        """What ends a choice that failed while others have answers. Only calls with several orders
        come to this."""
        ...

    def broken(self, problem: Problem) -> bytes:
        """What ends a stream that breaks. Before there is a writer its dialect has the word."""
        ...

    def last(self) -> bytes:
        """What closes the stream, once all choices have ended."""
        ...


class JobCall(Protocol):
    """One request, parsed: what to buy, and how to write the answer."""

    @property
    def orders(self) -> Sequence[Order]:
        """One job for each choice of the answer; all of one model. The first stands for all in
        what is counted and in errors."""
        ...

    @property
    def is_streamed(self) -> bool: ...

    def answer(self, choices: "Sequence[ChoiceAnswer]", created_s: int) -> bytes:
        """The body of the whole answer, as JSON. Raises ApiError if the node's output is broken.

        At least one choice has an answer; a call of one order has that. `created_s` is the time of
        the answer, in seconds since 1970. Large answers are written in a thread.
        """
        ...

    def writer(self, opened: StartedAnswer, created_s: int) -> StreamWriter:
        """For streams only."""
        ...


# What a whole answer has of one order: its job's answer, or why it has none.
ChoiceAnswer = WholeAnswer | ApiError


def only_answer(choices: Sequence[ChoiceAnswer]) -> WholeAnswer:
    """The answer of a call that has one order."""
    (choice,) = choices
    assert isinstance(choice, WholeAnswer), "a single job that fails is the request's failure"
    return choice


def problem_response(problem: Problem, dialect: Dialect) -> Response:
    """A problem as a whole response. The headers are those that stock clients of all APIs read."""
    headers = [*problem.headers, header("x-should-retry", str(problem.should_retry).lower())]
    if problem.retry_after_ms is not None:
        headers.append(header("retry-after", divide_up(problem.retry_after_ms, 1_000)))
        headers.append(header("retry-after-ms", problem.retry_after_ms))
    return Response(dialect.status_of(problem), dialect.error_body(problem), headers=tuple(headers))
