"""What an account may see of itself: its key, credit, usage, jobs and evidence. The shapes of
`/v1/key` and `/v1/credits` are OpenRouter's, with exact amounts beside its numbers."""

import base64
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Final, TypeVar

from coordinator.gateway.errors import ApiError, Problem, ProblemKind, error_of, invalid
from coordinator.gateway.http.account_shapes import (
    CreditAnswer,
    DayUsage,
    EvidenceAnswer,
    JobAnswer,
    JobsAnswer,
    KeyAnswer,
    PlainAttempt,
    PlainJob,
    UsageAnswer,
)
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.lists import read_query
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply, json_response
from coordinator.gateway.http.routes import Route
from coordinator.gateway.market_side.records import Records
from protocol.errors import CapaError, Code, RemoteProtocolError
from protocol.ids import JobId, PeerId, parse_ulid
from protocol.money import NANO_PER_CREDIT
from protocol.net.errors import NetError
from protocol.pricing import prices_of
from protocol.services import (
    DAY_MS,
    JOBS_PAGE_MAX,
    USAGE_DAYS_MAX,
    BalanceAsk,
    EvidenceAsk,
    JobAsk,
    JobAttempt,
    JobReply,
    JobsAsk,
    JobSummary,
    UsageAsk,
    UsageRow,
)

R = TypeVar("R")

_DAYS_DEFAULT = 30
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# As `coordinator receipts export` writes it.
_EVIDENCE_FORMAT = "capacloud-evidence-1"
_SIGNED: Final = ("request", "lease", "receipt", "acceptance", "delivery")


async def ask_records(context: GatewayContext, question: Callable[[Records], Awaitable[R]]) -> R:
    """Ask the market's books. Raises ApiError."""

    async def ask() -> R:
        return await question(context.market.records)

    try:
        return await context.bridge.call(ask)
    except RemoteProtocolError as error:
        raise error_of(error.code, str(error), retry_after_ms=error.retry_after_ms) from error
    except NetError as error:
        raise error_of(Code.COORDINATOR_LOST, str(error)) from error


def client_of(request: Request) -> PeerId:
    """Whose account pays: the books know no others."""
    assert request.caller is not None, "these routes are for callers only"
    return request.caller.signing_key.peer_id


def _only_user_of(request: Request) -> PeerId:
    """Whose account pays, if it is this user's alone. Raises ApiError (403)."""
    client = client_of(request)
    if request.caller is not None and request.caller.shares_account:
        raise ApiError(
            Problem(
                403,
                "several people share this gateway's account: a key sees its own budget at "
                "/v1/key, and its own purchases by their ids",
                kind=ProblemKind.PERMISSION,
                code="account_is_shared",
            )
        )
    return client


async def show_key(context: GatewayContext, request: Request) -> Reply:
    """The API key that asks: its budget and what it has spent."""
    assert request.caller is not None, "these routes are for callers only"
    key_id = request.caller.key_id
    use = await ask_records(context, lambda records: records.key_use(key_id))
    left_nano = None
    if use.budget_nano is not None:
        left_nano = max(0, use.budget_nano - use.spent_nano - use.held_nano)
    rate = use.requests_per_minute
    answer: KeyAnswer = {
        "data": {
            "label": use.label,
            "usage": credits_number(use.spent_nano),
            "limit": None if use.budget_nano is None else credits_number(use.budget_nano),
            "limit_remaining": None if left_nano is None else credits_number(left_nano),
            "limit_reset": None,
            "is_free_tier": False,
            "rate_limit": {"requests": -1 if rate is None else rate, "interval": "60s"},
            "id": use.id,
            "account": client_of(request),
            "created_at": use.created_at_ms // 1_000,
            "usage_nano": use.spent_nano,
            "held_nano": use.held_nano,
            "limit_nano": use.budget_nano,
        }
    }
    return json_response(answer)


async def show_credits(context: GatewayContext, request: Request) -> Reply:
    """What the account has had, spent, and has: held money is in neither of the last two."""
    client = _only_user_of(request)
    found = await ask_records(context, lambda records: records.balance(client, BalanceAsk()))
    answer: CreditAnswer = {
        "data": {
            "total_credits": credits_number(found.credited_nano),
            "total_usage": credits_number(found.spent_nano),
            "account": client,
            "available_nano": found.available_nano,
            "held_nano": found.held_nano,
            "total_credits_nano": found.credited_nano,
            "total_usage_nano": found.spent_nano,
        }
    }
    return json_response(answer)


async def show_usage(context: GatewayContext, request: Request) -> Reply:
    """Cost and tokens by day (UTC) and model, newest first: of `days` up to `date`. Raises
    ApiError (400, 403)."""
    query = read_query(request)
    ask = UsageAsk(
        _read_day(query.get("date"), context.now_s()),
        _read_count(query.get("days"), "days", default=_DAYS_DEFAULT, high=USAGE_DAYS_MAX),
    )
    client = _only_user_of(request)
    found = await ask_records(context, lambda records: records.usage(client, ask))
    answer: UsageAnswer = {
        "object": "list",
        "data": [_usage(row) for row in found.rows],
        "has_more": found.is_cut,
    }
    return json_response(answer)


async def list_jobs(context: GatewayContext, request: Request) -> Reply:
    """The account's jobs, newest first: `limit` of those before the id `before`. Raises
    ApiError (400)."""
    query = read_query(request)
    ask = JobsAsk(
        str(read_job_id(query["before"])) if "before" in query else "",
        _read_count(query.get("limit"), "limit", default=20, high=JOBS_PAGE_MAX),
    )
    client = _only_user_of(request)
    found = await ask_records(context, lambda records: records.jobs(client, ask))
    answer: JobsAnswer = {
        "object": "list",
        "data": [plain_job(job) for job in found.jobs],
        "has_more": bool(found.next_before),
        "next_before": found.next_before or None,
    }
    return json_response(answer)


async def show_job(context: GatewayContext, request: Request) -> Reply:
    """One job with every attempt at it. Raises ApiError (404)."""
    found = await find_job(context, request, job_id_of(request))
    attempts = [plain_attempt(attempt) for attempt in found.attempts]
    answer: JobAnswer = {**plain_job(found.job), "attempts": attempts}
    return json_response(answer)


async def show_evidence(context: GatewayContext, request: Request) -> Reply:
    """The signed messages of a job's last receipt, or of that of `lease`, to keep and to check
    with `coordinator receipts verify`. Raises ApiError (404)."""
    lease_id = read_query(request).get("lease", "")
    ask = EvidenceAsk(job_id_of(request), str(read_job_id(lease_id)) if lease_id else "")
    client = client_of(request)
    found = await ask_records(context, lambda records: records.evidence(client, ask))
    answer: EvidenceAnswer = {"format": _EVIDENCE_FORMAT}
    for name in _SIGNED:
        if signed := getattr(found, name):
            answer[name] = base64.b64encode(signed).decode()
    return json_response(answer)


async def find_job(context: GatewayContext, request: Request, job_id: JobId) -> JobReply:
    """Raises ApiError (404)."""
    client = client_of(request)
    return await ask_records(context, lambda records: records.job(client, JobAsk(job_id)))


def job_id_of(request: Request) -> JobId:
    """The id in the path. Raises ApiError (400)."""
    return read_job_id(request.parameters["id"])


def read_job_id(text: str) -> JobId:
    """A job's id; that of an answer, such as `chatcmpl-…`, ends in it. Raises ApiError (400)."""
    try:
        return JobId(parse_ulid(text[:128].rpartition("-")[2]))
    except (ValueError, CapaError):
        raise invalid(f"{text[:64]!r} is not an id of a job or a generation", "id") from None


def credits_number(nano: int) -> float:
    """As OpenRouter gives amounts; exact ones stand beside it."""
    return nano / NANO_PER_CREDIT


def plain_job(job: JobSummary) -> PlainJob:
    return {
        "id": job.job_id,
        "object": "job",
        "model": job.model,
        "model_digest": job.model_digest,
        "task": job.task.value,
        "state": job.state,
        "created_at_ms": job.created_at_ms,
        "ended_at_ms": job.ended_at_ms or None,
        "error_code": job.error_code or None,
        "amount_nano": job.amount_nano,
        "input_tokens": job.units.input_tokens,
        "output_tokens": job.units.output_tokens,
        "images": job.units.images,
        "tensor_elements": job.units.tensor_elements,
    }


def plain_attempt(attempt: JobAttempt) -> PlainAttempt:
    return {
        "attempt": attempt.attempt,
        "node": attempt.node,
        "lease_id": attempt.lease_id,
        "state": attempt.state,
        "finish": attempt.finish or None,
        "code": attempt.code or None,
        "price_nano": prices_of(attempt.price),
        "ceiling_nano": attempt.ceiling_nano,
        "amount_nano": attempt.amount_nano,
        "input_tokens": attempt.units.input_tokens,
        "output_tokens": attempt.units.output_tokens,
        "created_at_ms": attempt.created_at_ms,
        "ended_at_ms": attempt.ended_at_ms or None,
        "queued_ms": attempt.queued_ms,
        "first_output_ms": attempt.first_output_ms,
        "total_ms": attempt.total_ms,
        "receipt": attempt.receipt_digest or None,
        "receipt_state": attempt.receipt_state or None,
    }


def _usage(row: UsageRow) -> DayUsage:
    return {
        "date": (_EPOCH + timedelta(days=row.day)).date().isoformat(),
        "model": row.model,
        "model_digest": row.model_digest,
        "requests": row.jobs,
        "usage": credits_number(row.amount_nano),
        "amount_nano": row.amount_nano,
        "prompt_tokens": row.units.input_tokens,
        "completion_tokens": row.units.output_tokens,
        "images": row.units.images,
        "tensor_elements": row.units.tensor_elements,
    }


def _read_count(text: str | None, name: str, *, default: int, high: int) -> int:
    if text is None:
        return default
    if not text.isdecimal() or len(text) > 6 or not 1 <= int(text) <= high:
        raise invalid(f"{name} lies between 1 and {high}", name)
    return int(text)


def _read_day(text: str | None, now_s: int) -> int:
    if text is None:
        return now_s * 1_000 // DAY_MS
    try:
        day = datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC)
    except ValueError:
        raise invalid("date is a day such as 2026-11-27", "date") from None
    if not 1970 <= day.year < 2200:
        raise invalid("date lies between 1970 and 2199", "date")
    return (day - _EPOCH).days


ROUTES = (
    Route("GET", "/v1/key", show_key, OPENAI),
    # Its earlier name at OpenRouter.
    Route("GET", "/v1/auth/key", show_key, OPENAI),
    Route("GET", "/v1/credits", show_credits, OPENAI),
    Route("GET", "/v1/usage", show_usage, OPENAI),
    Route("GET", "/v1/jobs", list_jobs, OPENAI),
    Route("GET", "/v1/jobs/{id}", show_job, OPENAI),
    Route("GET", "/v1/receipts/{id}", show_evidence, OPENAI),
)
