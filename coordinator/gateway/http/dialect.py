"""What differs between the APIs that the gateway speaks. A new API is a folder beside `openai`: a
`Dialect`, a `JobCall` per route, and their rows in `JOB_ROUTES`."""

from typing import Protocol

from coordinator.buyer.result import PurchaseResult
from coordinator.gateway.errors import Headers, Problem
from coordinator.gateway.http.responses import Response, header
from coordinator.gateway.market_side.running import StartedAnswer, WholeAnswer
from coordinator.gateway.orders import Order
from protocol.money import divide_up


class Dialect(Protocol):
    """How one API writes errors and frames its streams."""

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
    """Encodes the events of one answer."""

    def first(self) -> bytes:
        """What opens the stream, before any text."""
        ...

    def text(self, text: str) -> bytes:
        """One piece of the answer."""
        ...

    def last(self, outcome: PurchaseResult) -> bytes:
        """Everything after the last token."""
        ...


class JobCall(Protocol):
    """One request for a job, parsed: what to buy, and how to write the answer."""

    @property
    def order(self) -> Order: ...

    @property
    def is_streamed(self) -> bool: ...

    def answer(self, finished: WholeAnswer, created_s: int) -> bytes:
        """The body of the whole answer, as JSON. Raises ApiError if the node's output is broken.

        `created_s` is the time of the answer, in seconds since 1970. Large answers are written in a
        thread.
        """
        ...

    def writer(self, opened: StartedAnswer, created_s: int) -> StreamWriter:
        """For streams only."""
        ...


def problem_response(problem: Problem, dialect: Dialect) -> Response:
    """A problem as a whole response. The headers are those that stock clients of all APIs read."""
    headers = [*problem.headers, header("x-should-retry", str(problem.should_retry).lower())]
    if problem.retry_after_ms is not None:
        headers.append(header("retry-after", divide_up(problem.retry_after_ms, 1_000)))
        headers.append(header("retry-after-ms", problem.retry_after_ms))
    return Response(problem.status, dialect.error_body(problem), headers=tuple(headers))
