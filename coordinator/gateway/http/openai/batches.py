"""Batches: POST and GET /v1/batches, GET /v1/batches/{id}, POST /v1/batches/{id}/cancel."""

from typing import Final

from coordinator.gateway.errors import ApiError, Problem, invalid, unsupported
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.lists import AFTER, ORDER, list_response, read_part
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.openai.files import (
    FILE_PREFIX,
    LIFETIME_S_MAX,
    LIFETIME_S_MIN,
    caller_of,
    filing_of,
    read_file_id,
)
from coordinator.gateway.http.openai.shapes import BatchObject, BatchProblem, BatchUsage
from coordinator.gateway.http.purchases import serve_purchase
from coordinator.gateway.http.query import CountParameter, read_query
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply, json_response
from coordinator.gateway.http.strict_json import Fields, check_text
from coordinator.gateway.market_side.filing import BatchInfo, BatchRequest
from protocol.errors import RemoteProtocolError
from protocol.ids import parse_ulid

BATCH_PREFIX = "batch_"
WINDOW: Final = "24h"
_LIMIT = CountParameter("limit", "How many batches.", default=20, high=100)
BATCHES_QUERY = (_LIMIT, ORDER, AFTER)
_ID_CHARS_MAX = 64
# OpenAI's bounds on metadata.
_LABELS_MAX, _LABEL_KEY_MAX, _LABEL_VALUE_MAX = 16, 64, 512


async def create_batch(context: GatewayContext, request: Request) -> Reply:
    """Runs the requests of a file where seats are idle, at the batch price. Raises ApiError,
    ClientGone."""
    filing = filing_of(context)
    ask = read_ask(await context.read_json(request))

    async def create() -> Reply:
        info = await context.bridge.call(filing.create_batch, caller_of(request), ask)
        return json_response(batch_object(info))

    return await serve_purchase(context, request, OPENAI, create, is_job=False)


async def list_batches(context: GatewayContext, request: Request) -> Reply:
    """The account's batches."""
    query = read_query(request)
    part = read_part(query, _LIMIT, read_id=_read_after)
    filing = filing_of(context)
    batches = await context.bridge.call(filing.list_batches, caller_of(request), part)
    return list_response(part, batches, batch_object)


async def retrieve_batch(context: GatewayContext, request: Request) -> Reply:
    """How far a batch is."""
    text = request.parameters["batch_id"]
    filing, batch_id = filing_of(context), _read_batch_id(text, "batch_id")
    info = await context.bridge.call(filing.find_batch, caller_of(request), batch_id)
    if info is None:
        raise _no_batch(text, "batch_id")
    return json_response(batch_object(info))


async def cancel_batch(context: GatewayContext, request: Request) -> Reply:
    """Ends a batch; the answers that there are can be fetched."""
    text = request.parameters["batch_id"]
    filing, batch_id = filing_of(context), _read_batch_id(text, "batch_id")
    info = await context.bridge.call(filing.cancel_batch, caller_of(request), batch_id)
    if info is None:
        raise _no_batch(text, "batch_id")
    return json_response(batch_object(info))


def read_ask(fields: Fields) -> BatchRequest:
    """Raises ApiError (400, 404)."""
    file_id = fields.text("input_file_id", chars_max=_ID_CHARS_MAX)
    endpoint = fields.text("endpoint", chars_max=_ID_CHARS_MAX)
    if fields.required("completion_window") != WINDOW:
        raise unsupported(f"completion_window is {WINDOW}", "completion_window")
    return BatchRequest(
        read_file_id(file_id, "input_file_id"),
        endpoint,
        _read_labels(fields),
        _read_lifetime(fields),
    )


def batch_object(info: BatchInfo) -> BatchObject:
    used: BatchUsage = {
        "input_tokens": info.input_tokens,
        "input_tokens_details": {"cached_tokens": info.cached_tokens},
        "output_tokens": info.output_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": info.input_tokens + info.output_tokens,
        "cost_nano": info.cost_nano,
    }
    errors: list[BatchProblem] = [
        {"code": e.code, "message": e.message, "line": e.line, "param": e.param}
        for e in info.errors
    ]
    return {
        "id": BATCH_PREFIX + info.id,
        "object": "batch",
        "endpoint": info.ask.endpoint,
        "model": None,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": FILE_PREFIX + info.ask.input_file_id,
        "completion_window": WINDOW,
        "status": info.status,
        "output_file_id": _file_id(info.output_file_id),
        "error_file_id": _file_id(info.error_file_id),
        "created_at": info.created_at_ms // 1_000,
        "expires_at": info.expires_at_ms // 1_000,
        "in_progress_at": _seconds(info.stamps_ms.get("in_progress")),
        "finalizing_at": _seconds(info.stamps_ms.get("finalizing")),
        "completed_at": _seconds(info.stamps_ms.get("completed")),
        "failed_at": _seconds(info.stamps_ms.get("failed")),
        "expired_at": _seconds(info.stamps_ms.get("expired")),
        "cancelling_at": _seconds(info.stamps_ms.get("cancelling")),
        "cancelled_at": _seconds(info.stamps_ms.get("cancelled")),
        "request_counts": {
            "total": info.total,
            "completed": info.completed,
            "failed": info.failed,
        },
        "usage": used,
        "metadata": dict(info.ask.labels) or None,
    }


def _read_labels(fields: Fields) -> dict[str, str]:
    given = fields.raw("metadata")
    if given is None:
        return {}
    if not isinstance(given, dict):
        raise invalid("metadata must be an object", "metadata", code="invalid_type")
    if len(given) > _LABELS_MAX:
        raise invalid(f"metadata has at most {_LABELS_MAX} pairs", "metadata")
    labels = {}
    for key, value in given.items():
        if len(key) > _LABEL_KEY_MAX:
            raise invalid(f"a key of metadata has at most {_LABEL_KEY_MAX} characters", "metadata")
        path = f"metadata.{key}"
        labels[key] = check_text(value, path)
        if len(labels[key]) > _LABEL_VALUE_MAX:
            raise invalid(f"{path} has at most {_LABEL_VALUE_MAX} characters", path)
    return labels


def _read_lifetime(fields: Fields) -> int | None:
    nested = fields.fields("output_expires_after")
    if nested is None:
        return None
    if nested.required("anchor") != "created_at":
        path = nested.path("anchor")
        raise invalid(f"{path} is created_at", path)
    nested.required("seconds")
    return nested.integer("seconds", low=LIFETIME_S_MIN, high=LIFETIME_S_MAX)


def _read_after(text: str) -> str:
    return _read_batch_id(text, "after")


def _read_batch_id(text: str, param: str) -> str:
    """The id without its prefix. Raises ApiError (404)."""
    try:
        return str(parse_ulid(text.removeprefix(BATCH_PREFIX)))
    except RemoteProtocolError:
        raise _no_batch(text, param) from None


def _no_batch(text: str, param: str) -> ApiError:
    message = f"no batch of yours is called {text[:64]!r}"
    return ApiError(Problem(404, message, code="not_found", param=param))


def _file_id(file_id: str | None) -> str | None:
    return None if file_id is None else FILE_PREFIX + file_id


def _seconds(at_ms: int | None) -> int | None:
    return None if at_ms is None else at_ms // 1_000
