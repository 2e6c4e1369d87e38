"""What chat and completions share: running a generation, whole or as a stream of events."""

from dataclasses import dataclass
from typing import Any, Protocol

from coordinator.buyer.attempt import AttemptResult
from coordinator.buyer.errors import JobFailed
from coordinator.errors import CoordinatorError
from coordinator.gateway.bridge import Stream
from coordinator.gateway.context import GatewayContext
from coordinator.gateway.errors import api_error_of
from coordinator.gateway.jobs import (
    FINISH_REASONS,
    Opened,
    count_finished,
    count_opened,
    finish_job,
    finished_headers,
    job_error,
    opened_headers,
    run_streaming,
    usage_of,
)
from coordinator.gateway.metrics import ModelMetrics
from coordinator.gateway.orders import GenerationOrder
from coordinator.gateway.requests import Request
from coordinator.gateway.responses import Headers, Reply, Send, json_response
from coordinator.gateway.sse import KEEPALIVE, ChoiceShape, Envelope, Events, error_event
from protocol.payload import Chunk

# Enough of the manifest's digest to tell models apart; `GET /v1/models` has all of it.
FINGERPRINT_CHARS = 16

# An event stream is nobody's to keep, to compress, or to collect before it is passed on.
_STREAM_HEADERS: Headers = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-transform"),
    (b"x-accel-buffering", b"no"),
)

_Chunks = Stream[Opened, Chunk, AttemptResult]


class Endpoint(Protocol):
    """What differs between chat and completions."""

    id_prefix: str
    object_whole: str
    object_chunk: str
    shape: ChoiceShape

    def choice(self, text: str, finish_reason: str) -> dict[str, Any]:
        """The one choice of a whole answer."""
        ...


@dataclass(frozen=True, slots=True)
class Generation:
    """One request for text."""

    context: GatewayContext
    request: Request
    order: GenerationOrder
    endpoint: Endpoint

    async def whole(self) -> Reply:
        """Answer when all is there. Raises ApiError."""
        finished = await finish_job(self.context, self.request, self.order)
        text = "".join(chunk.text for chunk in finished.chunks)
        reason = FINISH_REASONS[finished.outcome.finish]
        answer = self.envelope(finished.opened, self.endpoint.object_whole).to_plain() | {
            "choices": [self.endpoint.choice(text, reason)],
            "usage": usage_of(finished.outcome),
        }
        headers = finished_headers(self.context, self.request, finished)
        return json_response(answer, headers=headers)

    async def stream(self, *, include_usage: bool) -> Reply:
        """Answer as soon as there is something to show; a failure before that raises ApiError.

        Silence counts as something: a job that queues for long gets its headers early, without
        those that name its node, so that nobody on the way takes the connection for dead.
        """
        assert self.request.caller is not None, "jobs are for callers only"
        config = self.context.config
        chunks: _Chunks = self.context.bridge.stream(
            run_streaming,
            self.context.market,
            self.request.caller,
            self.order,
            config.job_within_s,
            buffer_max=config.stream_chunks_max,
            silence_s=config.keepalive_s,
        )
        try:
            first: list[Chunk] = await anext(chunks, [])
        except JobFailed as failure:
            chunks.close()
            raise job_error(self.context, self.request, self.order, failure) from failure
        except BaseException:
            chunks.close()
            raise
        return EventStream(self, chunks, first, include_usage=include_usage)

    def envelope(self, opened: Opened, object_name: str) -> Envelope:
        return Envelope(
            id=f"{self.endpoint.id_prefix}-{opened.info.job_id}",
            object_name=object_name,
            created=self.context.now_s(),
            model=self.order.routing.model,
            system_fingerprint=opened.info.model_digest[:FINGERPRINT_CHARS],
        )


class EventStream:
    """A running answer as a response. Once it is made, `send_to` must run: it ends the job."""

    status = 200

    def __init__(
        self, generation: Generation, chunks: _Chunks, first: list[Chunk], *, include_usage: bool
    ) -> None:
        self._generation = generation
        self._chunks = chunks
        self._first = first
        self._include_usage = include_usage
        self._events: Events | None = None
        self._metrics: ModelMetrics | None = None
        self._last_at = 0.0

    async def send_to(self, send: Send, more_headers: Headers) -> None:
        """One send per batch: whatever arrived while the last one was written goes out together."""
        headers = [*_STREAM_HEADERS, *more_headers, *self._opened_headers()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        try:
            await send(_body(self._render(self._first)))
            async for batch in self._chunks:
                body = self._render(batch)
                if body:
                    await send(_body(body))
            last = self._finish(self._chunks.result)
        except JobFailed as failure:
            generation = self._generation
            error = job_error(generation.context, generation.request, self._order, failure)
            last = error_event(error)
        except CoordinatorError as error:
            last = error_event(api_error_of(error))
        finally:
            self._chunks.close()
        await send({"type": "http.response.body", "body": last})

    @property
    def _order(self) -> GenerationOrder:
        return self._generation.order

    def _opened_headers(self) -> Headers:
        opened, generation = self._chunks.head, self._generation
        if opened is None:
            return ()
        return opened_headers(generation.context, generation.request, opened)

    def _render(self, batch: list[Chunk]) -> bytes:
        """The events of a batch as one; empty if it adds nothing that can be seen."""
        if not batch:
            return KEEPALIVE
        opening = self._open() if self._events is None else b""
        self._measure(batch)
        assert self._events is not None
        text = batch[0].text if len(batch) == 1 else "".join(chunk.text for chunk in batch)
        return opening + self._events.text(text) if text else opening

    def _open(self) -> bytes:
        """The job's identity is known: begin the answer."""
        generation, opened = self._generation, self._chunks.head
        assert opened is not None, "output comes from a job that is open"
        envelope = generation.envelope(opened, generation.endpoint.object_chunk)
        self._events = Events(
            envelope, generation.endpoint.shape, include_usage=self._include_usage
        )
        self._metrics = generation.context.metrics.of_model(self._order.routing.model)
        count_opened(generation.context, generation.request, opened)
        return self._events.first()

    def _measure(self, batch: list[Chunk]) -> None:
        now = self._generation.context.monotonic()
        metrics, last_at, self._last_at = self._metrics, self._last_at, now
        assert metrics is not None
        if not last_at:
            metrics.first_token_s.observe(now - self._generation.request.started_at)
            return
        tokens = sum([len(chunk.token_ids) for chunk in batch])
        for _ in range(tokens):
            metrics.inter_token_s.observe((now - last_at) / tokens)

    def _finish(self, outcome: AttemptResult) -> bytes:
        generation, opened = self._generation, self._chunks.head
        assert opened is not None, "a job that ended was open"
        opening = self._open() if self._events is None else b""
        assert self._events is not None
        count_finished(generation.context, generation.request, opened, outcome, self._order)
        return opening + self._events.last(FINISH_REASONS[outcome.finish], usage_of(outcome))


def _body(body: bytes) -> dict[str, Any]:
    return {"type": "http.response.body", "body": body, "more_body": True}
