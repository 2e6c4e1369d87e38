"""The gateway as a component: a listening socket, the asyncio thread behind it, and their end.

Stopping: no new connections, then requests in flight may finish within a deadline, then what is
left is cancelled on the trio side and answered with an error, and only then the thread ends. A
gateway that is cancelled waits for no request.
"""

import asyncio
import errno
import math
import socket
from collections.abc import Callable
from contextlib import closing

import structlog
import trio
import uvicorn
import uvloop

from coordinator.gateway.bridge import Bridge
from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.http.app import GatewayApp
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.server_protocol import bounded_protocol
from coordinator.gateway.market_side.market import GatewayMarket
from coordinator.gateway.metrics import Metrics
from protocol.net.errors import AddressInUse, AddressInvalid
from protocol.programs.runtime import Runtime, system_runtime

log = structlog.get_logger(__name__)

# Clients keep connections in a pool; most pools, and most load balancers, drop them after a minute.
_KEEP_ALIVE_S = 75

# Connections that wait to be accepted while the loop is busy.
_BACKLOG = 2_048

# For answering what was cancelled at the deadline, before the thread is ended the hard way.
_LAST_WORDS_S = 2


class Gateway:
    """The HTTP front of a market. `run` is its whole life."""

    def __init__(
        self,
        config: GatewayConfig,
        market: GatewayMarket,
        metrics: Metrics,
        runtime: Runtime | None = None,
    ) -> None:
        runtime = runtime or system_runtime()
        self._config = config
        self._bridge = Bridge()
        self._app = GatewayApp(GatewayContext(self._bridge, market, metrics, config, runtime))
        self._stopping = trio.Event()
        self._patience = trio.CancelScope()

    def stop(self) -> None:
        """Take no more requests, and end `run` when those in flight have their answers."""
        self._stopping.set()

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `stop` or cancelled; `started` with the URL.

        Raises AddressInUse, AddressInvalid.
        """
        with closing(open_listener(self._config.host, self._config.port)) as listener:
            ended = trio.Event()
            async with trio.open_nursery() as nursery:
                await nursery.start(self._serve, listener, ended)
                url = _url_of(listener)
                log.info("gateway_started", url=url)
                task_status.started(url)
                try:
                    await ended.wait()
                finally:
                    self._patience.cancel()
                    self._stopping.set()

    async def _serve(
        self,
        listener: socket.socket,
        all_ended: trio.Event,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Shielded: the thread is told to end, and joined."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as calls:
                await calls.start(self._bridge.run)
                async with trio.open_nursery() as thread:
                    server = _Server(self._app, self._config)
                    ended = trio.Event()
                    await thread.start(self._run_thread, server, listener, ended)
                    task_status.started()
                    await self._stopping.wait()
                    server.should_exit = True
                    with self._patience:
                        self._patience.deadline = (
                            trio.current_time() + self._config.shutdown_within_s
                        )
                        await ended.wait()
                    calls.cancel_scope.cancel()
        log.info("gateway_stopped")
        all_ended.set()

    async def _run_thread(
        self,
        server: "_Server",
        listener: socket.socket,
        ended: trio.Event,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        token = trio.lowlevel.current_trio_token()

        async def serve() -> None:
            loop = asyncio.get_running_loop()
            self._bridge.attach(loop)
            server.on_started = lambda: token.run_sync_soon(task_status.started)
            await server.serve(sockets=[listener])

        def run() -> None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())

        # A limiter of its own: the default one is for short blocking calls, and this takes a life.
        # Shielded even from the calls' end: the thread is joined, never abandoned.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(run, limiter=trio.CapacityLimiter(1))
        ended.set()


class _Server(uvicorn.Server):
    """uvicorn, set up for us. Set `should_exit` to stop it; it looks ten times a second."""

    def __init__(self, app: GatewayApp, config: GatewayConfig) -> None:
        self.on_started: Callable[[], None] = lambda: None
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded_protocol(config.connections_max),
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=_KEEP_ALIVE_S,
                timeout_graceful_shutdown=math.ceil(config.shutdown_within_s) + _LAST_WORDS_S,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_started()


def open_listener(host: str, port: int) -> socket.socket:
    """A listening socket. Raises AddressInUse, AddressInvalid."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = found[0]
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except socket.gaierror as error:
        raise AddressInvalid(f"{host} is not an address of this machine: {error}") from error
    except PermissionError:
        raise AddressInvalid(f"port {port} needs a privilege that we do not have") from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise AddressInUse(
                f"{host}:{port} is taken: stop the other program or choose another port"
            ) from None
        raise AddressInvalid(f"cannot listen on {host}:{port}: {error.strerror}") from error


def _url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
