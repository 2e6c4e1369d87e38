"""Running one job for one request: the part in trio, its errors, and its headers and numbers."""

from dataclasses import dataclass

import structlog
import trio

from coordinator.buyer.attempt import AttemptResult, AttemptTerms
from coordinator.buyer.errors import JobFailed
from coordinator.gateway.bridge import Feed
from coordinator.gateway.caller import Caller
from coordinator.gateway.context import GatewayContext
from coordinator.gateway.errors import ApiError, error_of
from coordinator.gateway.market import GatewayMarket, Job
from coordinator.gateway.orders import GenerationOrder, Order
from coordinator.gateway.requests import Request
from coordinator.gateway.responses import Headers, header
from protocol.errors import Code
from protocol.messages import Finish
from protocol.payload import Chunk

log = structlog.get_logger(__name__)

# OpenAI's words for how an answer ended.
FINISH_REASONS = {Finish.STOP: "stop", Finish.LENGTH: "length", Finish.COMPLETE: "stop"}

_BILLED = "; what had been delivered by then was charged"


@dataclass(frozen=True, slots=True)
class Opened:
    """A job that has output. `node_s` is how long the node took from the lease until then."""

    info: AttemptTerms
    node_s: float


@dataclass(frozen=True, slots=True)
class Finished:
    """A whole answer."""

    opened: Opened
    chunks: list[Chunk]
    outcome: AttemptResult

    @property
    def data(self) -> bytes:
        return b"".join(chunk.data for chunk in self.chunks)


# In trio.


async def run_whole(
    market: GatewayMarket, caller: Caller, order: Order, deadline_s: float
) -> Finished:
    """Run a job to its end. Raises JobFailed, ApiError."""
    spec = order.to_spec(caller, market.model(order.routing.model), deadline_s=deadline_s)
    started_at = trio.current_time()
    async with market.open_job(caller, spec) as job:
        chunks = [chunk async for chunk in job]
        opened = _opened(job, started_at)
    return Finished(opened, chunks, _outcome(job))


async def run_streaming(
    feed: Feed[Opened, Chunk],
    market: GatewayMarket,
    caller: Caller,
    order: Order,
    deadline_s: float,
) -> AttemptResult:
    """Run a job and feed its chunks. Raises JobFailed, ApiError."""
    spec = order.to_spec(caller, market.model(order.routing.model), deadline_s=deadline_s)
    started_at = trio.current_time()
    async with market.open_job(caller, spec) as job:
        feed.head = _opened(job, started_at)
        async for chunk in job:
            if not feed.put(chunk):
                await feed.wait_room()
    return _outcome(job)


def _opened(job: Job, started_at: float) -> Opened:
    info = job.terms
    assert info is not None, "a job that is open says where it runs"
    return Opened(info, trio.current_time() - started_at - info.lease_ms / 1_000)


def _outcome(job: Job) -> AttemptResult:
    outcome = job.result
    assert outcome is not None, "a job that was read to its end says how it ended"
    if outcome.finish not in FINISH_REASONS:
        raise JobFailed(
            f"the node says that the job ended as {outcome.finish}",
            code=Code.NODE_LOST,
            delivered=outcome.amount_nano > 0,
        )
    return outcome


# In asyncio.


async def finish_job(context: GatewayContext, request: Request, order: Order) -> Finished:
    """Run a job and return its whole answer. Raises ApiError."""
    assert request.caller is not None, "jobs are for callers only"
    try:
        finished = await context.bridge.call(
            run_whole, context.market, request.caller, order, context.config.job_within_s
        )
    except JobFailed as failure:
        raise job_error(context, request, order, failure) from failure
    count_opened(context, request, finished.opened)
    count_finished(context, request, finished.opened, finished.outcome, order)
    return finished


def job_error(
    context: GatewayContext, request: Request, order: Order, failure: JobFailed
) -> ApiError:
    """What the user is told of a failed job; counts it, too."""
    log.info(
        "request_failed",
        request_id=request.request_id,
        job_id=failure.job_id,
        code=failure.code.value,
    )
    context.metrics.count_job(order.task, failure.code.value, attempts=0)
    code = failure.code
    if code is Code.INPUT_TOO_LARGE and isinstance(order, GenerationOrder):
        # The node counted more tokens than the context leaves beside the answer.
        code = Code.PROMPT_TOO_LONG
    error = error_of(
        code,
        str(failure),
        retry_after_ms=failure.retry_after_ms,
        is_billed=failure.delivered,
        input_param=order.input_param,
    )
    if failure.delivered:
        error.args = (f"{error}{_BILLED}",)
    if failure.job_id is not None:
        error.headers = (*error.headers, header("x-capacloud-job-id", failure.job_id))
    return error


def count_opened(context: GatewayContext, request: Request, opened: Opened) -> None:
    # The one line that leads from what the user has, the request's id, to the job's whole path.
    log.info(
        "request_opened_job",
        request_id=request.request_id,
        job_id=opened.info.job_id,
        node=opened.info.node,
    )
    metrics = context.metrics
    metrics.overhead_s.observe(_overhead_s(context, request, opened))
    metrics.match_s.observe(opened.info.match_us / 1_000_000)


def count_finished(
    context: GatewayContext, request: Request, opened: Opened, outcome: AttemptResult, order: Order
) -> None:
    model = context.metrics.of_model(order.routing.model)
    model.end_to_end_s.observe(context.monotonic() - request.started_at)
    model.prompt_tokens.inc(outcome.units.input_tokens)
    model.generation_tokens.inc(outcome.units.output_tokens)
    model.images.inc(outcome.units.images)
    model.count_success(FINISH_REASONS[outcome.finish])
    context.metrics.count_job(order.task, outcome.finish.value, attempts=opened.info.attempts)


def opened_headers(context: GatewayContext, request: Request, opened: Opened) -> Headers:
    """Where a job runs, at which price, and what we added to its time."""
    info, price = opened.info, opened.info.price
    return (
        header("x-capacloud-job-id", info.job_id),
        header("x-capacloud-node", info.node),
        header("x-capacloud-attempts", info.attempts),
        header(
            "x-capacloud-price-nano",
            f"input_per_mtok={price.input_nano_per_mtok}, "
            f"output_per_mtok={price.output_nano_per_mtok}, "
            f"image={price.image_nano}, request={price.request_nano}",
        ),
        header("x-capacloud-match-us", info.match_us),
        header("x-capacloud-lease-ms", f"{info.lease_ms:.3f}"),
        header("x-capacloud-queue-position", info.queue_position),
        header("x-capacloud-overhead-ms", f"{1_000 * _overhead_s(context, request, opened):.3f}"),
    )


def finished_headers(context: GatewayContext, request: Request, finished: Finished) -> Headers:
    """What is known only in the end."""
    outcome = finished.outcome
    return (
        *opened_headers(context, request, finished.opened),
        header("x-capacloud-amount-nano", outcome.amount_nano),
        header("x-capacloud-queue-ms", outcome.receipt.message.queued_ms),
        header("x-capacloud-receipt", outcome.receipt.digest),
    )


def usage_of(outcome: AttemptResult) -> dict[str, int]:
    """OpenAI's counts, as metered and signed by the node, and what they cost."""
    units = outcome.units
    return {
        "prompt_tokens": units.input_tokens,
        "completion_tokens": units.output_tokens,
        "total_tokens": units.input_tokens + units.output_tokens,
        "cost_nano": outcome.amount_nano,
    }


def _overhead_s(context: GatewayContext, request: Request, opened: Opened) -> float:
    """Everything so far but the node's time: reading, leasing (a durable hold), crossing over."""
    return max(0.0, context.monotonic() - request.started_at - opened.node_s)
