"""The ASGI application: keys, limits, and the one place that turns errors into responses."""

import asyncio

import structlog

from coordinator.errors import CoordinatorError
from coordinator.gateway.errors import ApiError, api_error_of, error_of
from coordinator.gateway.http.all_routes import make_routes
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.cors import Cors
from coordinator.gateway.http.dialect import Dialect, problem_response
from coordinator.gateway.http.local_only import check_local
from coordinator.gateway.http.oip.websocket import StreamDoor, is_stream_path
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.requests import ClientGone, Request, Scope
from coordinator.gateway.http.responses import REQUEST_ID, Receive, Reply, Send
from coordinator.gateway.http.routes import Route, Router
from protocol.errors import Code

log = structlog.get_logger(__name__)

# Enough that no two requests of a lifetime meet.
_REQUEST_ID_BYTES = 12

# The label of paths that are not ours: what strangers ask for must not become time series.
_UNKNOWN = "unknown"


class GatewayApp:
    """ASGI. Lives on the asyncio thread."""

    def __init__(self, context: GatewayContext) -> None:
        self._context = context
        self._entropy = context.runtime.entropy
        self._router = Router(make_routes())
        self._cors = Cors(context.config.cors_origins)
        self._running = 0
        context.metrics.watch_requests(lambda: self._running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            return
        request = Request(
            scope,
            receive,
            request_id=f"req_{self._entropy(_REQUEST_ID_BYTES).hex()}",
            name=self._context.new_job_name(),
            started_at=self._context.monotonic(),
        )
        self._running += 1
        try:
            if scope["type"] == "websocket":
                await self._serve_stream(request, receive, send)
            else:
                await self._serve(request, send)
        except asyncio.CancelledError:
            # The client hung up and so cancelled us; any other cancellation goes on.
            if not request.is_gone:
                raise
        finally:
            request.close()
            self._running -= 1

    async def _serve_stream(self, request: Request, receive: Receive, send: Send) -> None:
        if is_stream_path(request.scope):
            await StreamDoor(self._context, request, receive, send).serve()
        else:
            await receive()
            await send({"type": "websocket.close"})

    async def _serve(self, request: Request, send: Send) -> None:
        request_id = request.request_id.encode()
        headers = [(REQUEST_ID, request_id), *self._cors.headers(request)]
        dialect: Dialect = OPENAI
        name = _UNKNOWN
        try:
            reply: Reply | None = self._cors.preflight(request)
            if reply is None:
                try:
                    found = self._router.find(request.scope)
                except ApiError:
                    dialect = self._router.dialect_of(request.scope) or dialect
                    raise
                dialect, name = found.route.dialect, found.route.template
                request.parameters = found.parameters
                if dialect.request_id_header != REQUEST_ID:
                    headers.append((dialect.request_id_header, request_id))
                reply = await self._reply(found.route, request, headers)
        except ClientGone:
            return
        except CoordinatorError as error:
            reply = problem_response(api_error_of(error).problem, dialect)
        except Exception as error:
            # The boundary of one request: its client gets a problem in the API's shape.
            log.error("request_crashed", request_id=request.request_id, exc_info=error)
            reply = problem_response(error_of(Code.INTERNAL, "").problem, dialect)
        self._context.metrics.http_requests.labels(name, str(reply.status)).inc()
        await reply.send_to(send, tuple(headers))

    async def _reply(
        self, route: Route, request: Request, headers: list[tuple[bytes, bytes]]
    ) -> Reply:
        """Let the request in, or raise ApiError; `headers` gains what the key's limits say."""
        if not route.is_public:
            check_local(request, self._context.config)
            await self._context.identify(request)
            caller = request.caller
            assert caller is not None, "an identified request has a caller"
            if caller.requests_per_minute is not None:
                headers += self._context.limits.take(caller.key_id, caller.requests_per_minute)
            request.place = self._context.places.enter(caller.owner)
        return await route.handler(self._context, request)
