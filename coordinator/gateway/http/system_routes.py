"""GET /health and /metrics: for load balancers and Prometheus, without a key.

Strangers may ask, so neither costs the market more than one look a second.
"""

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, Literal, TypedDict, TypeVar

from coordinator.buyer.ahead.pool import PoolCounts
from coordinator.gateway.bridge import BridgeClosedError
from coordinator.gateway.errors import ApiError, Problem, ProblemKind
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply, Response
from coordinator.gateway.http.routes import AnswerShape, Route
from coordinator.gateway.market_side.market import GatewayMarket, Health, ModelInfo
from protocol.net.transport import TransportStatistics

# The market's loop answers within a millisecond; a second of silence means that it is stuck.
_ANSWER_WITHIN_S = 2.0

# Prometheus asks every 15 seconds, load balancers every second or less often.
_TTL_S = 1.0

_METRICS_TYPE = b"text/plain; version=1.0.0; charset=utf-8"

# A proxy that passes a request on says so with one of these.
_FORWARDED = (b"forwarded", b"x-forwarded-for", b"x-real-ip", b"via")

T = TypeVar("T")


class HealthAnswer(TypedDict):
    status: Literal["ok", "unavailable"]
    reason: str | None
    nodes: int


@dataclass(slots=True)
class _Known(Generic[T]):
    value: T
    until: float


class Remembered(Generic[T]):
    """What `look` returned last, for a second. All who ask while it looks wait for one answer."""

    def __init__(self, look: Callable[[GatewayContext], Awaitable[T]]) -> None:
        self._look = look
        self._known: _Known[T] | None = None
        self._looking: asyncio.Task[T] | None = None

    async def get(self, context: GatewayContext) -> T:
        known = self._known
        if known is not None and context.monotonic() < known.until:
            return known.value
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._refresh(context))
            self._looking.add_done_callback(self._end)
        return await asyncio.shield(self._looking)

    async def _refresh(self, context: GatewayContext) -> T:
        until = context.monotonic() + _TTL_S
        value = await self._look(context)
        self._known = _Known(value, until)
        return value

    def _end(self, _: "asyncio.Task[T]") -> None:
        self._looking = None


def make_system_routes() -> tuple[Route, ...]:
    """With memories of their own, so one gateway never answers with what another one saw."""
    known_health, known_metrics = Remembered(_look_at_health), Remembered(_render_metrics)

    async def health(context: GatewayContext, request: Request) -> Reply:
        """200 if jobs can be taken, 503 with the reason if not."""
        return await known_health.get(context)

    async def metrics(context: GatewayContext, request: Request) -> Reply:
        """Prometheus' text format. Raises ApiError (403)."""
        if not (context.config.metrics_public or _is_local(request)):
            raise _metrics_are_local()
        return await known_metrics.get(context)

    return (
        Route(
            "GET",
            "/health",
            health,
            OPENAI,
            is_public=True,
            answer=AnswerShape(HealthAnswer, statuses=(200, 503)),
        ),
        Route(
            "GET",
            "/metrics",
            metrics,
            OPENAI,
            is_public=True,
            answer=AnswerShape(content_type="text/plain"),
        ),
    )


async def _look_at_health(context: GatewayContext) -> Response:
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            found = await context.bridge.call(_health, context.market)
    except BridgeClosedError as error:
        found = Health(0, str(error))
    except TimeoutError:
        found = Health(0, "the market does not answer")
    body: HealthAnswer = {
        "status": "unavailable" if found.reason else "ok",
        "reason": found.reason or None,
        "nodes": found.nodes,
    }
    return Response(503 if found.reason else 200, json.dumps(body).encode())


async def _render_metrics(context: GatewayContext) -> Response:
    found, models, network, leases = await context.bridge.call(_look, context.market)
    context.metrics.set_market(found.nodes, {model.name: model.nodes for model in models})
    context.metrics.set_network(network)
    context.metrics.set_leases_ahead(leases)
    context.metrics.set_tasks(await context.bridge.count_tasks())
    # With many models there are thousands of series: half a second of work.
    text = await asyncio.to_thread(context.metrics.render)
    return Response(200, text, _METRICS_TYPE)


def _is_local(request: Request) -> bool:
    """Whether the request comes from this machine, and was not passed on by a proxy on it."""
    client = request.scope.get("client")
    if client is None or any(request.header(name) is not None for name in _FORWARDED):
        return False
    try:
        return ipaddress.ip_address(client[0]).is_loopback
    except ValueError:
        return False


def _metrics_are_local() -> ApiError:
    return ApiError(
        Problem(
            403,
            "metrics are for this machine only: set metrics_public to open them",
            kind=ProblemKind.PERMISSION,
            code="metrics_not_public",
        )
    )


# In trio, through the bridge.


async def _health(market: GatewayMarket) -> Health:
    return market.health()


async def _look(
    market: GatewayMarket,
) -> tuple[Health, list[ModelInfo], TransportStatistics, PoolCounts]:
    return market.health(), list(market.models()), market.network(), market.leases_ahead()
