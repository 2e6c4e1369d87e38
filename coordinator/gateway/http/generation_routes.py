"""GET /v1/generation: what became of a purchase, for the account that made it. The names are
OpenRouter's; what it ran on, attempt by attempt, and the evidence are ours."""

from datetime import UTC, datetime

from coordinator.gateway.errors import ApiError, Problem, invalid
from coordinator.gateway.http.account_routes import credits_number
from coordinator.gateway.http.account_shapes import GenerationAnswer, GenerationObject
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.job_routes import (
    find_job,
    job_id_of,
    plain_attempt,
    plain_job,
    read_job_id,
)
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.query import TextParameter, read_query
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply, json_response
from coordinator.gateway.http.routes import AnswerShape, Route
from coordinator.gateway.http.timings import Stages
from protocol.endings import API_FINISH_REASONS, Finish
from protocol.ids import JobId
from protocol.services import JobReply

_ID = TextParameter("id", "The id of an answer, or of its job.", is_required=True)


async def show_generation(context: GatewayContext, request: Request) -> Reply:
    """What became of a purchase: node, price, times by stage, attempts and why each ended, cost and
    receipts. Raises ApiError (404)."""
    return await _show(context, request, job_id_of(request))


async def find_generation(context: GatewayContext, request: Request) -> Reply:
    """The same, with the id as the parameter `id`. Raises ApiError (400, 404)."""
    text = read_query(request).get(_ID.name)
    if not text:
        raise invalid("name a generation: ?id=…", "id", code="missing_required_parameter")
    return await _show(context, request, read_job_id(text, _ID.name))


async def read_content(context: GatewayContext, request: Request) -> Reply:
    """The answer that a client hung up on, for a while. Raises ApiError (404)."""
    assert request.caller is not None, "these routes are for callers only"
    found = await context.keeper.content(request.caller.owner, job_id_of(request))
    if found is None:
        raise ApiError(
            Problem(
                404,
                "there is no content of this generation: it was delivered, its time is over, or "
                "nothing of it was made",
                code="not_found",
            )
        )
    return found


async def _show(context: GatewayContext, request: Request, job_id: JobId) -> Reply:
    found = await find_job(context, request, job_id)
    answer: GenerationAnswer = {"data": plain_generation(found, context.timings.of(job_id))}
    return json_response(answer)


def plain_generation(found: JobReply, stages: Stages) -> GenerationObject:
    job, attempts = found.job, found.attempts
    billed = [attempt for attempt in attempts if attempt.finish]
    last = billed[-1] if billed else None
    finish = _finish_reason(last.finish) if last is not None else None
    cost = credits_number(job.amount_nano)
    return {
        "id": job.job_id,
        "model": job.model,
        "model_digest": job.model_digest,
        "created_at": datetime.fromtimestamp(job.created_at_ms / 1_000, UTC).isoformat(),
        "provider_name": attempts[-1].node if attempts else None,
        "finish_reason": finish,
        "native_finish_reason": last.finish if last is not None else None,
        "cancelled": last is not None and last.finish == Finish.CANCELLED.value,
        "tokens_prompt": job.units.input_tokens,
        "tokens_completion": job.units.output_tokens,
        "native_tokens_prompt": job.units.input_tokens,
        "native_tokens_cached": job.units.cached_tokens,
        "native_tokens_completion": job.units.output_tokens,
        "num_media_prompt": job.units.images,
        "latency": last.first_output_ms if last is not None else None,
        "generation_time": last.total_ms if last is not None else None,
        "usage": cost,
        "total_cost": cost,
        "amount_nano": job.amount_nano,
        "state": job.state,
        "error_code": job.error_code or None,
        "timings_ms": {name: round(ms, 3) for name, ms in stages.items()},
        "attempts": [plain_attempt(attempt) for attempt in attempts],
        "receipts": [attempt.receipt_digest for attempt in attempts if attempt.receipt_digest],
        "job": plain_job(job),
    }


def _finish_reason(finish: str) -> str | None:
    known = {choice.value: choice for choice in Finish}
    return API_FINISH_REASONS.get(known[finish]) if finish in known else None


_ANSWER = AnswerShape(GenerationAnswer)
# What the purchase's own route would have answered.
_CONTENT = AnswerShape(content_type="*/*")

ROUTES = (
    Route("GET", "/v1/generation", find_generation, OPENAI, query=(_ID,), answer=_ANSWER),
    Route("GET", "/v1/generation/{id}", show_generation, OPENAI, answer=_ANSWER),
    Route("GET", "/v1/generation/{id}/content", read_content, OPENAI, answer=_CONTENT),
)
