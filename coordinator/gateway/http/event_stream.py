"""A running answer as a response: one event per batch of chunks, whatever the dialect."""

from typing import Any

from coordinator.buyer.errors import JobFailed
from coordinator.buyer.job_name import JobName
from coordinator.errors import CoordinatorError
from coordinator.gateway.bridge import BatchStream
from coordinator.gateway.errors import Headers, Problem, api_error_of, error_of
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.dialect import Dialect, JobCall, StreamWriter
from coordinator.gateway.http.jobs import (
    count_finished,
    count_opened,
    job_error,
    note_timings,
    opened_headers,
)
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Send
from coordinator.gateway.market_side.running import (
    ChoiceEnd,
    ChoiceItem,
    StartedAnswer,
    run_streaming,
)
from coordinator.gateway.metrics import ModelMetrics
from protocol.errors import RemoteProtocolError
from protocol.payload import Chunk

Chunks = BatchStream[StartedAnswer, ChoiceItem, None]


async def open_event_stream(
    context: GatewayContext, request: Request, call: JobCall, dialect: Dialect
) -> "EventStream":
    """Start a job; returns when there is something to show. A failure before that raises ApiError.

    Silence counts as something: a job that queues for long gets its headers early, without those
    that name its node, so that no proxy on the way takes the connection for dead.
    """
    assert request.caller is not None, "jobs are for callers only"
    config = context.config
    chunks: Chunks = context.bridge.stream(
        run_streaming,
        context.market,
        request.caller,
        call.orders,
        context.job_limits(request.name, request.delivered),
        buffer_max=config.stream_chunks_max,
        silence_s=config.keepalive_s,
    )
    try:
        first: list[ChoiceItem] = await anext(chunks, [])
    except JobFailed as failure:
        chunks.close()
        raise job_error(context, request, call.orders[0], failure) from failure
    except BaseException:
        # Cancelled, too: without a reader the job would run on at its client's expense.
        chunks.close()
        raise
    if chunks.head is not None:
        # Another than was meant, where another model answers.
        request.name = JobName(chunks.head.generation_id)
    return EventStream(context, request, call, dialect, chunks=chunks, first=first)


class EventStream:
    """A `Reply`. Once it is made, `send_to` must run: it ends the job."""

    status = 200

    def __init__(
        self,
        context: GatewayContext,
        request: Request,
        call: JobCall,
        dialect: Dialect,
        *,
        chunks: Chunks,
        first: list[ChoiceItem],
    ) -> None:
        self._context = context
        self._request = request
        self._call = call
        self._dialect = dialect
        self._chunks = chunks
        self._first = first
        self._writer: StreamWriter | None = None
        self._metrics: ModelMetrics | None = None
        self._last_at = 0.0
        self._overhead_s = 0.0
        self._sent_at = 0.0

    async def send_to(self, send: Send, more_headers: Headers) -> None:
        """One send per batch: what arrived while the last one was written goes out together."""
        headers = [*self._dialect.stream_headers, *more_headers, *self._opened_headers()]
        if self._request.is_http_1_0:
            send = _whole_sender(send)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await send(_body(self._render(self._first)))
            self._sent_at = self._context.monotonic()
            async for batch in self._chunks:
                body = self._render(batch)
                if body or self._is_silent():
                    self._sent_at = self._context.monotonic()
                    await send(_body(body or self._dialect.keepalive))
            assert self._writer is not None, "a stream that did not fail has output, or ends"
            last = self._writer.last()
        except JobFailed as failure:
            error = job_error(self._context, self._request, self._call.orders[0], failure)
            last = self._broken(error.problem)
        except RemoteProtocolError as error:
            broken = error_of(error.code, str(error), is_billed=True)
            last = self._broken(broken.problem)
        except CoordinatorError as error:
            last = self._broken(api_error_of(error).problem)
        finally:
            self._chunks.close()
        await send({"type": "http.response.body", "body": last})

    def _broken(self, problem: Problem) -> bytes:
        writer = self._writer
        return self._dialect.error_event(problem) if writer is None else writer.broken(problem)

    def _opened_headers(self) -> Headers:
        opened = self._chunks.head
        if opened is None:
            return ()
        return opened_headers(self._context, self._request, opened)

    def _render(self, batch: list[ChoiceItem]) -> bytes:
        """The events of a batch as one; empty if it adds nothing that can be seen."""
        if not batch:
            return self._dialect.keepalive
        written = [self._open()] if self._writer is None else []
        writer = self._writer
        assert writer is not None
        chunks: list[Chunk] = []
        of = batch[0][0]
        tokens = 0
        for choice, item in batch:
            if chunks and (choice != of or not isinstance(item, Chunk)):
                written.append(writer.add(of, chunks))
                chunks = []
            if isinstance(item, Chunk):
                of = choice
                chunks.append(item)
                tokens += len(item.token_ids)
            else:
                written.append(self._end(writer, choice, item))
        if chunks:
            written.append(writer.add(of, chunks))
        if tokens:
            self._measure(tokens)
        return b"".join(written)

    def _end(self, writer: StreamWriter, choice: int, item: ChoiceEnd | JobFailed) -> bytes:
        context, request, order = self._context, self._request, self._call.orders[choice]
        if isinstance(item, JobFailed):
            return writer.fail(choice, job_error(context, request, order, item).problem)
        if item.opened is not self._chunks.head:
            count_opened(context, request, item.opened)
        note_timings(
            context, item.opened, item.outcome, overhead_s=self._overhead_s, is_whole=False
        )
        count_finished(context, request, item.opened, item.outcome, order)
        return writer.end(choice, item.outcome)

    def _is_silent(self) -> bool:
        """Whether output came that shows nothing, and has for long."""
        silent_s = self._context.monotonic() - self._sent_at
        return silent_s > self._context.config.keepalive_s

    def _open(self) -> bytes:
        """The job's identity is known: begin the answer."""
        opened = self._chunks.head
        assert opened is not None, "output comes from a job that is open"
        self._writer = self._call.writer(opened, self._context.now_s())
        self._metrics = self._context.metrics.of_model(opened.model_name)
        self._overhead_s = count_opened(self._context, self._request, opened)
        return self._writer.first()

    def _measure(self, tokens: int) -> None:
        now = self._context.monotonic()
        metrics, last_at, self._last_at = self._metrics, self._last_at, now
        assert metrics is not None
        if not last_at:
            metrics.first_token_s.observe(now - self._request.started_at)
            return
        for _ in range(tokens):
            metrics.inter_token_s.observe((now - last_at) / tokens)


def _body(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}


def _whole_sender(send: Send) -> Send:
    """HTTP/1.0 has no chunks: collect the events, and send them with their length."""
    start: dict[str, Any] = {}
    body = bytearray()

    async def collect(message: dict[str, Any]) -> None:
        body.extend(message.get("body", b""))
        if message["type"] == "http.response.start":
            start.update(message)
        elif not message.get("more_body", False):
            length = (b"content-length", str(len(body)).encode())
            await send(start | {"headers": [*start["headers"], length]})
            await send({"type": "http.response.body", "body": bytes(body)})

    return collect
