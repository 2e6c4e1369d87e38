"""What an account may see of itself: its key, credit and usage. The shapes of
`/v1/key` and `/v1/credits` are OpenRouter's, with exact amounts beside its numbers."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from coordinator.gateway.errors import ApiError, Problem, ProblemKind, error_of, invalid
from coordinator.gateway.http.account_shapes import (
    CreditAnswer,
    DayUsage,
    KeyAnswer,
    UsageAnswer,
)
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.query import CountParameter, TextParameter, read_query
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply, json_response
from coordinator.gateway.http.routes import AnswerShape, Route
from coordinator.gateway.market_side.records import Records
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId
from protocol.money import NANO_PER_CREDIT
from protocol.net.errors import NetError
from protocol.services import (
    DAY_MS,
    USAGE_DAYS_MAX,
    BalanceAsk,
    UsageAsk,
    UsageRow,
)

R = TypeVar("R")

_DATE = TextParameter("date", "The last day, in UTC. Default today.", {"format": "date"})
_DAYS = CountParameter("days", "How many days up to it.", default=30, high=USAGE_DAYS_MAX)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


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


def only_user_of(request: Request) -> PeerId:
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
    client = only_user_of(request)
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
        _read_day(query.get(_DATE.name), context.now_s()),
        _DAYS.read(query),
    )
    client = only_user_of(request)
    found = await ask_records(context, lambda records: records.usage(client, ask))
    answer: UsageAnswer = {
        "object": "list",
        "data": [_usage(row) for row in found.rows],
        "has_more": found.is_cut,
    }
    return json_response(answer)


def credits_number(nano: int) -> float:
    """As OpenRouter gives amounts; exact ones stand beside it."""
    return nano / NANO_PER_CREDIT


def _usage(row: UsageRow) -> DayUsage:
    return {
        "date": (_EPOCH + timedelta(days=row.day)).date().isoformat(),
        "model": row.model,
        "model_digest": row.model_digest,
        "requests": row.jobs,
        "usage": credits_number(row.amount_nano),
        "amount_nano": row.amount_nano,
        "prompt_tokens": row.units.input_tokens,
        "cached_tokens": row.units.cached_tokens,
        "completion_tokens": row.units.output_tokens,
        "images": row.units.images,
        "tensor_elements": row.units.tensor_elements,
    }


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
    Route("GET", "/v1/key", show_key, OPENAI, answer=AnswerShape(KeyAnswer)),
    # Its earlier name at OpenRouter.
    Route("GET", "/v1/auth/key", show_key, OPENAI, answer=AnswerShape(KeyAnswer)),
    Route("GET", "/v1/credits", show_credits, OPENAI, answer=AnswerShape(CreditAnswer)),
    Route(
        "GET",
        "/v1/usage",
        show_usage,
        OPENAI,
        query=(_DATE, _DAYS),
        answer=AnswerShape(UsageAnswer),
    ),
)
