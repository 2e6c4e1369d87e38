"""What became of an account's jobs: attempt by attempt, with the signed evidence."""

import base64
from typing import Final

from coordinator.gateway.errors import invalid
from coordinator.gateway.http.account_routes import ask_records, client_of, only_user_of
from coordinator.gateway.http.account_shapes import (
    EvidenceAnswer,
    JobAnswer,
    JobsAnswer,
    PlainAttempt,
    PlainJob,
)
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.query import CountParameter, TextParameter, read_query
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply, json_response
from coordinator.gateway.http.routes import AnswerShape, Route
from protocol.errors import CapaError
from protocol.ids import JobId, parse_ulid
from protocol.pricing import prices_of
from protocol.services import (
    JOBS_PAGE_MAX,
    EvidenceAsk,
    JobAsk,
    JobAttempt,
    JobReply,
    JobsAsk,
    JobSummary,
)

# As `coordinator receipts export` writes it.
_EVIDENCE_FORMAT = "capacloud-evidence-1"
_SIGNED: Final = ("request", "lease", "receipt", "acceptance", "delivery")

_LIMIT = CountParameter("limit", "How many jobs.", default=20, high=JOBS_PAGE_MAX)
_BEFORE = TextParameter("before", "The id of a job: list older ones.")
_LEASE = TextParameter("lease", "The id of one of its leases. Default the last with a receipt.")


async def list_jobs(context: GatewayContext, request: Request) -> Reply:
    """The account's jobs, newest first: `limit` of those before the id `before`. Raises
    ApiError (400)."""
    query = read_query(request)
    ask = JobsAsk(
        str(read_job_id(query[_BEFORE.name], _BEFORE.name)) if _BEFORE.name in query else "",
        _LIMIT.read(query),
    )
    client = only_user_of(request)
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
    lease_id = read_query(request).get(_LEASE.name, "")
    ask = EvidenceAsk(
        job_id_of(request), str(read_job_id(lease_id, _LEASE.name)) if lease_id else ""
    )
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
    return read_job_id(request.parameters["id"], "id")


def read_job_id(text: str, param: str) -> JobId:
    """A job's id; that of an answer, such as `chatcmpl-…`, ends in it. Raises ApiError (400)."""
    try:
        return JobId(parse_ulid(text[:128].rpartition("-")[2]))
    except (ValueError, CapaError):
        raise invalid(f"{text[:64]!r} is not an id of a job or a generation", param) from None


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
        "cached_tokens": job.units.cached_tokens,
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
        "cached_tokens": attempt.units.cached_tokens,
        "output_tokens": attempt.units.output_tokens,
        "created_at_ms": attempt.created_at_ms,
        "ended_at_ms": attempt.ended_at_ms or None,
        "queued_ms": attempt.queued_ms,
        "first_output_ms": attempt.first_output_ms,
        "total_ms": attempt.total_ms,
        "receipt": attempt.receipt_digest or None,
        "receipt_state": attempt.receipt_state or None,
    }


ROUTES = (
    Route(
        "GET",
        "/v1/jobs",
        list_jobs,
        OPENAI,
        query=(_LIMIT, _BEFORE),
        answer=AnswerShape(JobsAnswer),
    ),
    Route("GET", "/v1/jobs/{id}", show_job, OPENAI, answer=AnswerShape(JobAnswer)),
    Route(
        "GET",
        "/v1/receipts/{id}",
        show_evidence,
        OPENAI,
        query=(_LEASE,),
        answer=AnswerShape(EvidenceAnswer),
    ),
)
