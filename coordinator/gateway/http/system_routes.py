"""GET /health and /metrics: for load balancers and Prometheus, without a key."""

import asyncio
import json

from coordinator.gateway.bridge import BridgeClosedError
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.requests import Request
from coordinator.gateway.http.responses import Reply, Response
from coordinator.gateway.http.routes import Route
from coordinator.gateway.market_side.market import GatewayMarket, Health, ModelInfo

# The market's loop answers within a millisecond; a second of silence means that it is stuck.
_ANSWER_WITHIN_S = 2.0

_METRICS_TYPE = b"text/plain; version=1.0.0; charset=utf-8"


async def health(context: GatewayContext, request: Request) -> Reply:
    """200 if jobs can be taken, 503 with the reason if not."""
    try:
        async with asyncio.timeout(_ANSWER_WITHIN_S):
            found = await context.bridge.call(_health, context.market)
    except BridgeClosedError as error:
        found = Health(0, str(error))
    except TimeoutError:
        found = Health(0, "the market does not answer")
    status = "unavailable" if found.reason else "ok"
    body = {"status": status, "reason": found.reason or None, "nodes": found.nodes}
    return Response(503 if found.reason else 200, json.dumps(body).encode())


async def metrics(context: GatewayContext, request: Request) -> Reply:
    """Prometheus' text format."""
    found, models = await context.bridge.call(_look, context.market)
    context.metrics.set_market(found.nodes, {model.name: model.nodes for model in models})
    return Response(200, context.metrics.render(), _METRICS_TYPE)


# In trio, through the bridge.


async def _health(market: GatewayMarket) -> Health:
    return market.health()


async def _look(market: GatewayMarket) -> tuple[Health, list[ModelInfo]]:
    return market.health(), list(market.models())


ROUTES = (
    Route("GET", "/health", health, OPENAI, is_public=True),
    Route("GET", "/metrics", metrics, OPENAI, is_public=True),
)
