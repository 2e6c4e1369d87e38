"""One job for one request: its errors, its headers and its numbers."""

from collections.abc import Sequence
from typing import Protocol

import structlog

from coordinator.buyer.errors import JobFailed
from coordinator.buyer.job_name import JobName
from coordinator.buyer.result import PurchaseResult
from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import ApiError, Headers, error_of
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.responses import header
from coordinator.gateway.http.timings import server_timing, stages_of
from coordinator.gateway.market_side.running import StartedAnswer, WholeAnswer, run_whole
from coordinator.gateway.orders import GenerationOrder, Order
from protocol.endings import API_FINISH_REASONS
from protocol.errors import Code
from protocol.money import format_credits
from protocol.payload import Chunk
from protocol.pricing import prices_of

log = structlog.get_logger(__name__)


# Clients look for these words before they shorten a conversation.
_CONTEXT_WORDS = "maximum context length"


def _billed(amount_nano: int) -> str:
    """It may be less: a node that vanished has yet to say what it bills."""
    return f"; what had been delivered is charged, at most {format_credits(amount_nano)} credits"


class Asked(Protocol):
    """What is known of a request, whatever protocol brought it. `name` is of what it buys; with
    several choices, of the first."""

    name: JobName

    @property
    def request_id(self) -> str: ...

    @property
    def started_at(self) -> float: ...

    @property
    def caller(self) -> Caller | None: ...

    @property
    def delivered(self) -> dict[int, list[Chunk]]:
        """Gains what comes of a whole answer, by choice."""
        ...


async def finish_jobs(
    context: GatewayContext, request: Asked, orders: Sequence[Order]
) -> list[WholeAnswer | ApiError]:
    """Run jobs and return their whole answers. Raises ApiError if none has one."""
    assert request.caller is not None, "jobs are for callers only"
    try:
        ends = await context.bridge.call(
            run_whole,
            context.market,
            request.caller,
            orders,
            context.job_limits(request.name, request.delivered),
        )
    except JobFailed as failure:
        raise job_error(context, request, orders[0], failure) from failure
    answers: list[WholeAnswer | ApiError] = []
    for end, order in zip(ends, orders, strict=True):
        if isinstance(end, JobFailed):
            answers.append(job_error(context, request, order, end))
            continue
        # Another than was meant, where another model answers.
        request.name = JobName(end.opened.generation_id)
        overhead_s = count_opened(context, request, end.opened)
        note_timings(context, end.opened, end.outcome, overhead_s=overhead_s, is_whole=True)
        count_finished(context, request, end.opened, end.outcome, order)
        answers.append(end)
    return answers


def job_error(
    context: GatewayContext, request: Asked, order: Order, failure: JobFailed
) -> ApiError:
    """What the user is told of a failed job; counts it, too."""
    log.info(
        "request_failed",
        request_id=request.request_id,
        job_id=failure.job_id,
        code=failure.code.value,
    )
    context.metrics.count_job(order.task, failure.code.value, attempts=0)
    if failure.code is not Code.UNKNOWN_MODEL and request.caller is not None:
        name, ns = order.routing.model, _since_ns(context, request)
        context.uses.note_failure(request.caller.owner, name, ns=ns)
    # A node that counts too much input says so with one code for all tasks.
    code = order.too_large_code if failure.code is Code.INPUT_TOO_LARGE else failure.code
    message = str(failure)
    if code is Code.PROMPT_TOO_LONG and _CONTEXT_WORDS not in message:
        message = f"the {_CONTEXT_WORDS} of this model is exceeded: {message}"
    error = error_of(
        code,
        message,
        retry_after_ms=failure.retry_after_ms,
        is_billed=failure.amount_nano > 0,
        input_param=_param_at_fault(order, code),
    )
    if failure.amount_nano:
        error = error.but(message=error.problem.message + _billed(failure.amount_nano))
    if failure.job_id is not None:
        error = error.but(headers=(header("x-capacloud-job-id", failure.job_id),))
    return error


def _param_at_fault(order: Order, code: Code) -> str:
    if isinstance(order, GenerationOrder):
        return order.param_at_fault(code)
    return order.input_param


def count_opened(context: GatewayContext, request: Asked, opened: StartedAnswer) -> float:
    """Returns the seconds that we added."""
    # The one line that leads from what the user has, the request's id, to the job's whole path.
    log.info(
        "request_opened_job",
        request_id=request.request_id,
        job_id=opened.info.job_id,
        node=opened.info.node,
    )
    metrics = context.metrics
    overhead_s = _overhead_s(context, request, opened)
    metrics.overhead_s.observe(overhead_s)
    metrics.match_s.observe(opened.info.match_us / 1_000_000)
    return overhead_s


def note_timings(
    context: GatewayContext,
    opened: StartedAnswer,
    outcome: PurchaseResult,
    *,
    overhead_s: float,
    is_whole: bool,
) -> None:
    """For the record of the generation."""
    stages = stages_of(opened, overhead_s=overhead_s, receipt=outcome.receipt, is_whole=is_whole)
    context.timings.note(opened.info.job_id, stages)


def count_finished(
    context: GatewayContext,
    request: Asked,
    opened: StartedAnswer,
    outcome: PurchaseResult,
    order: Order,
) -> None:
    model = context.metrics.of_model(opened.model_name)
    model.end_to_end_s.observe(context.monotonic() - request.started_at)
    model.prompt_tokens.inc(outcome.units.input_tokens)
    model.generation_tokens.inc(outcome.units.output_tokens)
    model.images.inc(outcome.units.images)
    model.tensor_elements.inc(outcome.units.tensor_elements)
    model.count_success(API_FINISH_REASONS[outcome.finish])
    context.metrics.count_job(order.task, outcome.finish.value, attempts=opened.info.attempts)
    assert request.caller is not None, "jobs are for callers only"
    context.uses.note_success(
        request.caller.owner,
        opened.model_name,
        outcome,
        ns=_since_ns(context, request),
        now_ms=context.runtime.clock.now_ms(),
    )


def _since_ns(context: GatewayContext, request: Asked) -> int:
    return round(1e9 * (context.monotonic() - request.started_at))


def opened_headers(context: GatewayContext, request: Asked, opened: StartedAnswer) -> Headers:
    """Where a job runs, at which price, and what we added to its time."""
    info, price = opened.info, opened.info.price
    overhead_s = _overhead_s(context, request, opened)
    stages = context.timings.of(info.job_id) or stages_of(opened, overhead_s=overhead_s)
    return (
        header("x-capacloud-job-id", info.job_id),
        header("x-capacloud-node", info.node),
        header("x-capacloud-attempts", info.attempts),
        header(
            "x-capacloud-price-nano",
            ", ".join(f"{name}={nano}" for name, nano in prices_of(price).items()),
        ),
        header("x-capacloud-match-us", info.match_us),
        header("x-capacloud-lease-ms", f"{info.lease_ms:.3f}"),
        header("x-capacloud-queue-position", info.queue_position),
        header("x-capacloud-overhead-ms", f"{1_000 * overhead_s:.3f}"),
        header("server-timing", server_timing(stages)),
    )


def finished_headers(
    context: GatewayContext, request: Asked, answers: Sequence[WholeAnswer | ApiError]
) -> Headers:
    """What is known only in the end. The amount is of all jobs, the rest of the first answer."""
    found = [answer for answer in answers if isinstance(answer, WholeAnswer)]
    receipt = found[0].outcome.receipt
    headers = (
        *opened_headers(context, request, found[0].opened),
        header("x-capacloud-amount-nano", sum(answer.outcome.amount_nano for answer in found)),
    )
    reasons = [a.outcome.reason for a in found if a.outcome.reason is not None]
    if reasons:
        headers += (header("x-capacloud-ended-by", reasons[0]),)
    if receipt is None:
        return headers
    return (
        *headers,
        header("x-capacloud-queue-ms", receipt.message.queued_ms),
        header("x-capacloud-receipt", receipt.digest),
    )


def _overhead_s(context: GatewayContext, request: Asked, opened: StartedAnswer) -> float:
    """Everything so far but the node's time: reading, leasing (a durable hold), crossing over."""
    return max(0.0, context.monotonic() - request.started_at - opened.node_s)
