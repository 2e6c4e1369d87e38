"""A stream of inference requests: answers come in the order of the requests.

Requests of a tensor model that wait together become one job, so that a stream keeps up with its
records however long the way to the node is. A model whose answers depend on the rows before them
gets those once, and its node keeps them from job to job (`series`); a node that does not have them
gets them again, so that any node can go on where another one failed, and what was not answered is
asked again. Nothing is answered twice. A reader of answers that falls behind holds up the jobs, and
they hold up who sends requests.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from coordinator.buyer.errors import JobFailed
from coordinator.buyer.job_name import JobName
from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import ApiError, invalid
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.fair_places import Place
from coordinator.gateway.http.jobs import Asked, finish_jobs, job_error
from coordinator.gateway.http.oip.running import routing_fields, run_inference, settle_model
from coordinator.gateway.http.oip.series import Series
from coordinator.gateway.http.routing_params import read_routing
from coordinator.gateway.http.strict_json import Fields
from coordinator.gateway.inference.answers import answer_of, text_tensor
from coordinator.gateway.inference.messages import InferenceAnswer, InferenceRequest
from coordinator.gateway.inference.models import version_of
from coordinator.gateway.inference.orders import orders_of
from coordinator.gateway.inference.stream_items import (
    StreamReply,
    StreamRequest,
    begins_series,
    can_share_job,
    ends_series,
    series_key,
    split_answer,
    without_series,
)
from coordinator.gateway.market_side.running import ChoiceEnd, WholeAnswer, run_streaming
from coordinator.gateway.orders import Order
from protocol.errors import Code
from protocol.limits import STREAM_ID_BYTES
from protocol.messages import Task
from protocol.payload import Chunk
from protocol.tensor_rows import join_rows, rows_of

# Requests of one stream that wait, and their bytes; then its sender waits.
PENDING_MAX = 256
PENDING_BYTES_MAX = 4 * 1024 * 1024
# Of one job: more rows would make the first of them wait.
_JOB_ROWS_MAX = 1_024
_JOB_BYTES_MAX = 1024 * 1024
# Series that one stream may mix.
SERIES_MAX = 64
# Nodes that fail one after another. Each purchase tries several by itself.
_TRIES_MAX = 3
_PAUSE_S, _PAUSE_MAX_S = 0.25, 2.0
# A series that has begun waits so long for a node that can go on, as a text does that has begun.
_GO_ON_WITHIN_S = 30.0
_NO_NODE = frozenset({Code.NO_NODE_FITS.value, Code.UNKNOWN_MODEL.value})


@dataclass(slots=True)
class _JobOrder:
    """One job of a stream, as a request of its own."""

    request_id: str
    started_at: float
    caller: Caller | None
    name: JobName
    delivered: dict[int, list[Chunk]] = field(default_factory=dict)


class StreamCall(Protocol):
    """Who has a stream open, and its place among all requests."""

    @property
    def request_id(self) -> str: ...

    @property
    def caller(self) -> Caller | None: ...

    @property
    def place(self) -> Place: ...

    async def identify(self, context: GatewayContext) -> None:
        """The key may have been revoked since. Raises ApiError (401)."""
        ...

    def routed(self, fields: Fields) -> Fields:
        """The fields with what the key and the headers say of routing. Raises ApiError (400)."""
        ...


@dataclass
class _Waiting:
    """What has arrived and is not answered yet."""

    items: deque[StreamRequest | ApiError] = field(default_factory=deque)
    bytes: int = 0
    is_closed: bool = False


class InferenceStream:
    """`put` requests, `close`, and iterate over the replies meanwhile."""

    def __init__(self, context: GatewayContext, call: StreamCall) -> None:
        self._context = context
        self._call = call
        self._waiting = _Waiting()
        self._changed = asyncio.Condition()
        self._series: dict[object, Series] = {}

    async def put(self, item: StreamRequest | ApiError) -> None:
        """Waits while too much waits. An ApiError is a request that could not be read: it is told
        in its turn. Raises ApiError (429) if the account holds too much in all its requests."""
        size = item.size if isinstance(item, StreamRequest) else 0
        async with self._changed:
            while self._waiting.items and not self._has_room(size):
                await self._changed.wait()
            self._call.place.grow(size)
            self._waiting.items.append(item)
            self._waiting.bytes += size
            self._changed.notify_all()

    async def close(self) -> None:
        """No more requests come."""
        async with self._changed:
            self._waiting.is_closed = True
            self._changed.notify_all()

    async def replies(self) -> AsyncIterator[StreamReply]:
        """Until the stream is closed and all is answered. Raises ApiError if it cannot go on."""
        while batch := await self._take():
            if isinstance(batch[0], ApiError):
                yield StreamReply(InferenceRequest("", ()), batch[0])
                continue
            requests = [item for item in batch if isinstance(item, StreamRequest)]
            async for reply in self._answer(requests):
                yield reply

    def _has_room(self, size: int) -> bool:
        waiting = self._waiting
        return len(waiting.items) < PENDING_MAX and waiting.bytes + size <= PENDING_BYTES_MAX

    async def _take(self) -> list[StreamRequest | ApiError]:
        """The next requests that one job can answer; none at the end."""
        async with self._changed:
            while not self._waiting.items and not self._waiting.is_closed:
                await self._changed.wait()
            if not self._waiting.items:
                return []
            batch = [self._waiting.items.popleft()]
            first = batch[0]
            if isinstance(first, StreamRequest):
                rows, size = rows_of(first.request.inputs) or 0, first.size
                while self._waiting.items and rows and self._can_batch(first):
                    following = self._waiting.items[0]
                    if not can_share_job(first, following):
                        break
                    assert isinstance(following, StreamRequest)
                    rows += rows_of(following.request.inputs) or 0
                    size += following.size
                    if rows > _JOB_ROWS_MAX or size > _JOB_BYTES_MAX:
                        break
                    batch.append(self._waiting.items.popleft())
            self._waiting.bytes -= sum(i.size for i in batch if isinstance(i, StreamRequest))
            self._call.place.shrink_to(self._waiting.bytes)
            self._changed.notify_all()
        return batch

    def _can_batch(self, item: StreamRequest) -> bool:
        """Of a model whose task is not known yet, the first request runs alone."""
        series = self._series.get(series_key(item.request))
        return series is not None and series.model.task is Task.TENSOR

    async def _answer(self, items: Sequence[StreamRequest]) -> AsyncIterator[StreamReply]:
        """Raises ApiError if the stream cannot go on."""
        first = items[0].request
        try:
            await self._call.identify(self._context)
            series = await self._series_of(first)
        except ApiError as error:
            if error.problem.status in (400, 404):
                for item in items:
                    yield StreamReply(item.request, error)
                return
            raise
        if items[0].is_context:
            for item in items:
                series.add_context(item.request.inputs)
            return
        if series.model.task is not Task.TENSOR:
            async for reply in self._other(first, series):
                yield reply
            return
        try:
            replies = await self._run(items, series)
        except ApiError as error:
            if error.problem.status >= 429 or error.problem.status in (401, 402, 403):
                raise
            # One of them is wrong: which one shows when each runs alone.
            if len(items) == 1:
                yield StreamReply(first, error)
                return
            for item in items:
                async for reply in self._answer([item]):
                    yield reply
            return
        for reply in replies:
            yield reply

    async def _series_of(self, request: InferenceRequest) -> Series:
        """Raises ApiError."""
        key = series_key(request)
        series = self._series.get(key)
        if series is None:
            if len(self._series) >= SERIES_MAX:
                raise invalid(f"a stream has at most {SERIES_MAX} series", "parameters")
            routing = read_routing(self._call.routed(routing_fields(request)))
            # Its parts go to one node while that serves.
            routing = replace(routing, session=routing.session or self._call.request_id)
            model, routing = await settle_model(self._context, request, routing)
            series = self._series[key] = Series.begin(model, routing, self._new_id())
        elif begins_series(request):
            series = self._series[key] = series.begun_anew(self._new_id())
        return series

    def _new_id(self) -> bytes:
        return self._context.runtime.entropy(STREAM_ID_BYTES)

    async def _run(self, items: Sequence[StreamRequest], series: Series) -> list[StreamReply]:
        """One job for all of them. Raises ApiError."""
        inputs = join_rows([item.request.inputs for item in items])
        series.check(items[0].request, inputs)
        request = replace(
            items[0].request, inputs=inputs, parameters=without_series(items[0].request)
        )
        whole = await self._buy(series, request)
        answer = answer_of(request, series.model, [whole])
        if ends_series(items[-1].request):
            self._series[series_key(items[-1].request)] = series.begun_anew(self._new_id())
        return split_answer(items, answer, whole)

    async def _other(self, request: InferenceRequest, series: Series) -> AsyncIterator[StreamReply]:
        """Of a model for texts or pictures. Raises ApiError."""
        request = replace(request, parameters=without_series(request))
        try:
            orders = orders_of(request, series.routing, series.model)
            if series.model.task is Task.CAUSAL_LM and len(orders) == 1:
                async for reply in self._text(request, series, orders):
                    yield reply
                return
            finished = await run_inference(self._context, self._ask(), request, series.routing)
        except ApiError as error:
            yield StreamReply(request, error)
            return
        yield StreamReply(request, finished.answer)

    async def _text(
        self, request: InferenceRequest, series: Series, orders: Sequence[Order]
    ) -> AsyncIterator[StreamReply]:
        """A reply for each piece of the text, and an empty one at its end. Raises ApiError."""
        context, caller = self._context, self._call.caller
        assert caller is not None, "jobs are for callers only"
        ask = self._ask()
        stream = context.bridge.stream(
            run_streaming,
            context.market,
            caller,
            orders,
            context.job_limits(ask.name, ask.delivered),
            buffer_max=context.config.stream_chunks_max,
            silence_s=context.config.keepalive_s,
        )
        try:
            async for batch in stream:
                text = "".join(item.text for _, item in batch if isinstance(item, Chunk))
                if text:
                    yield StreamReply(request, _text_answer(request, series, text), is_final=False)
                for _, item in batch:
                    if isinstance(item, ChoiceEnd):
                        yield StreamReply(
                            request,
                            _text_answer(request, series, ""),
                            cost_nano=item.outcome.amount_nano,
                            node=item.opened.info.node,
                        )
        except JobFailed as failure:
            raise job_error(context, ask, orders[0], failure) from failure
        finally:
            stream.close()

    def _ask(self) -> Asked:
        context, call = self._context, self._call
        name = context.new_job_name()
        return _JobOrder(call.request_id, context.monotonic(), call.caller, name)

    async def _buy(self, series: Series, request: InferenceRequest) -> WholeAnswer:
        """From the node that has the window, or from any. Raises ApiError."""
        whole = await self._buy_continued(series, request)
        was_continued = whole is not None
        if whole is None:
            whole = await self._buy_whole(series, series.whole_orders(request))
        series.note_answer(request.inputs, whole.opened.info, was_continued=was_continued)
        return whole

    async def _buy_continued(self, series: Series, request: InferenceRequest) -> WholeAnswer | None:
        """None if no node has the window. Raises ApiError."""
        orders = series.continued_orders(request)
        if orders is None:
            return None
        try:
            return await self._finish(orders)
        except ApiError as error:
            if not series.note_failure(error):
                raise
            return None

    async def _buy_whole(self, series: Series, orders: Sequence[Order]) -> WholeAnswer:
        """Raises ApiError."""
        loop = asyncio.get_running_loop()
        gives_up_at = loop.time() + _GO_ON_WITHIN_S
        failures, pause_s = 0, _PAUSE_S
        while True:
            try:
                return await self._finish(orders)
            except ApiError as error:
                problem = error.problem
                if series.has_begun and problem.code in _NO_NODE:
                    is_last = loop.time() >= gives_up_at
                else:
                    failures += 1
                    is_last = not problem.should_retry or failures == _TRIES_MAX
                if is_last:
                    raise
            await asyncio.sleep(max(pause_s, (problem.retry_after_ms or 0) / 1_000))
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    async def _finish(self, orders: Sequence[Order]) -> WholeAnswer:
        """Raises ApiError."""
        (answer,) = await finish_jobs(self._context, self._ask(), orders)
        if isinstance(answer, ApiError):
            raise answer
        return answer


def refuse_key(key: str | None) -> None:
    """A stream is no purchase that could be made once. Raises ApiError (400)."""
    if key is not None:
        raise invalid(
            "a stream takes no idempotency key: a client that reconnects sends its last records "
            "as context",
            "idempotency-key",
        )


def _text_answer(request: InferenceRequest, series: Series, text: str) -> InferenceAnswer:
    model = series.model
    return InferenceAnswer(model.name, version_of(model), request.id, (text_tensor([text]),))
