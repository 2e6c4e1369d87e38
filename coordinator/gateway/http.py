"""The ASGI application: routes, keys, limits, and the one place that turns errors into responses.

Routing is a dictionary: there are ten paths, and every streamed answer starts here.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog

from coordinator.errors import CoordinatorError
from coordinator.gateway.callers import Callers
from coordinator.gateway.context import GatewayContext
from coordinator.gateway.cors import Cors
from coordinator.gateway.errors import ApiError, api_error_of, error_of
from coordinator.gateway.openai_routes.chat import chat_completions
from coordinator.gateway.openai_routes.completions import completions
from coordinator.gateway.openai_routes.embeddings import embeddings
from coordinator.gateway.openai_routes.images import image_classifications
from coordinator.gateway.openai_routes.models import MODEL_PATH, list_models, retrieve_model
from coordinator.gateway.rate_limit import RateLimits
from coordinator.gateway.requests import ClientGone, Request, Scope
from coordinator.gateway.responses import Receive, Reply, Send, header
from coordinator.gateway.system_routes import health, metrics
from protocol.errors import Code

log = structlog.get_logger(__name__)

# Enough that no two requests of a lifetime meet.
_REQUEST_ID_BYTES = 12

Handler = Callable[[GatewayContext, Request], Awaitable[Reply]]


@dataclass(frozen=True, slots=True)
class Route:
    """`name` is for metrics: a path may contain a model's name. Public routes take no key."""

    name: str
    method: str
    handler: Handler
    is_public: bool = False


ROUTES = {
    "/v1/chat/completions": Route("/v1/chat/completions", "POST", chat_completions),
    "/v1/completions": Route("/v1/completions", "POST", completions),
    "/v1/embeddings": Route("/v1/embeddings", "POST", embeddings),
    "/v1/images/classifications": Route(
        "/v1/images/classifications", "POST", image_classifications
    ),
    "/v1/models": Route("/v1/models", "GET", list_models),
    "/health": Route("/health", "GET", health, is_public=True),
    "/metrics": Route("/metrics", "GET", metrics, is_public=True),
}
MODEL_ROUTE = Route("/v1/models/{model}", "GET", retrieve_model)

# The label of paths that are not ours: what strangers ask for must not become time series.
_UNKNOWN = "unknown"

# Long enough for some requests to end, short enough that nobody notices.
_OVERLOAD_RETRY_MS = 1_000


class GatewayApp:
    """ASGI. Lives on the asyncio thread."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._entropy = context.runtime.entropy
        self._limits = RateLimits(context.monotonic)
        self._callers = Callers(
            lambda secret: context.bridge.call(context.market.authenticate, secret),
            monotonic=context.monotonic,
        )
        self._cors = Cors(context.config.cors_origins)
        self._running = 0
        context.metrics.watch_requests(lambda: self._running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(
            scope,
            receive,
            request_id=f"req_{self._entropy(_REQUEST_ID_BYTES).hex()}",
            started_at=self._context.monotonic(),
        )
        self._running += 1
        try:
            await self._serve(request, send)
        except asyncio.CancelledError:
            # Whoever hung up has cancelled us; anybody else, such as a stopping server, goes on.
            if not request.is_gone:
                raise
        finally:
            request.close()
            self._running -= 1

    async def _serve(self, request: Request, send: Send) -> None:
        headers = [header("x-request-id", request.request_id), *self._cors.headers(request)]
        route = _find_route(request.path)
        try:
            reply: Reply = self._cors.preflight(request) or await self._reply(
                route, request, headers
            )
        except ClientGone:
            return
        except CoordinatorError as error:
            reply = api_error_of(error).to_response()
        except Exception as error:
            log.error("request_crashed", request_id=request.request_id, exc_info=error)
            reply = error_of(Code.INTERNAL, "").to_response()
        name = route.name if route is not None else _UNKNOWN
        self._context.metrics.http_requests.labels(name, str(reply.status)).inc()
        await reply.send_to(send, tuple(headers))

    async def _reply(
        self, route: Route | None, request: Request, headers: list[tuple[bytes, bytes]]
    ) -> Reply:
        """Let the request in, or raise ApiError; `headers` gains what the key's limits say."""
        if route is None:
            raise ApiError(
                404, f"there is no {request.method} {request.path[:128]}", api_code="unknown_url"
            )
        if request.method != route.method and (request.method, route.method) != ("HEAD", "GET"):
            raise ApiError(
                405,
                f"use {route.method} for {route.name}",
                api_code="method_not_allowed",
                headers=(header("allow", route.method),),
            )
        if not route.is_public:
            self._check_load()
            caller = await self._callers.identify(request.header(b"authorization"))
            if caller.requests_per_minute is not None:
                headers += self._limits.take(caller.key_id, caller.requests_per_minute)
            request.caller = caller
        return await route.handler(self._context, request)

    def _check_load(self) -> None:
        if self._running > self._context.config.requests_max:
            error = error_of(Code.BUSY, "", retry_after_ms=_OVERLOAD_RETRY_MS)
            error.args = ("the gateway has more requests in flight than it can hold",)
            raise error


def _find_route(path: str) -> Route | None:
    route = ROUTES.get(path)
    if route is None and path.startswith(MODEL_PATH) and path != MODEL_PATH:
        return MODEL_ROUTE
    return route
