"""The gateway as a component: a listening socket, the asyncio thread behind it, and their end.

Stopping: `drain` takes no new connections and lets requests in flight finish, `cut` cancels what is
left on the trio side, which answers it with an error, and only then the thread ends.
"""

import asyncio
import errno
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import closing

import structlog
import trio
import uvicorn
import uvloop

from coordinator.gateway.bridge import Bridge
from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.grpc.door import GrpcDoor
from coordinator.gateway.http.app import GatewayApp
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.http.server_bounds import BoundedWebSocket, ServerBounds
from coordinator.gateway.http.server_protocol import KEEP_ALIVE_S, bounded_protocol
from coordinator.gateway.market_side.filing import Filing
from coordinator.gateway.market_side.market import GatewayMarket
from coordinator.gateway.metrics import Metrics
from protocol.net.descriptors import raise_descriptor_limit, server_descriptors
from protocol.net.errors import AddressInUse, AddressInvalid
from protocol.programs.runtime import Runtime, system_runtime

log = structlog.get_logger(__name__)

# A message of a WebSocket: some thousand records.
_MESSAGE_BYTES_MAX = 1024 * 1024

# Connections that wait to be accepted while the loop is busy.
_BACKLOG = 2_048

# For answering what was cut, before the thread is ended the hard way.
_LAST_WORDS_S = 2


class Gateway:
    """The HTTP front of a market. `run` is its whole life; it may be drained and cut before."""

    def __init__(
        self,
        config: GatewayConfig,
        market: GatewayMarket,
        metrics: Metrics,
        runtime: Runtime | None = None,
        *,
        filing: Filing | None = None,
    ) -> None:
        runtime = runtime or system_runtime()
        self._config = config
        self._bridge = Bridge()
        context = GatewayContext.make(
            self._bridge, market, metrics, config=config, runtime=runtime, filing=filing
        )
        self._grpc = GrpcDoor(context, config)
        self._server = _Server(GatewayApp(context), config, on_shutdown=self._stop_grpc)
        self._calls = trio.CancelScope()
        self._ended = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[str] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled, then drain and cut; `started` with the URL.

        Raises AddressInUse, AddressInvalid.
        """
        with closing(_listener_of(self._config)) as listener:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._serve, listener)
                url = _url_of(listener)
                log.info("gateway_started", url=url, grpc=self.grpc_address)
                task_status.started(url)
                try:
                    await trio.sleep_forever()
                finally:
                    # Shielded: a cancelled gateway still owes answers for some seconds.
                    with trio.CancelScope(shield=True):
                        await self.drain(within_s=self._config.shutdown_within_s)
                        self.cut()
                        await self._ended.wait()
                        log.info("gateway_stopped")

    async def drain(self, *, within_s: float) -> None:
        """Take no new connections; return when every request in flight has ended, or in time."""
        self._server.should_exit = True
        with trio.move_on_after(within_s):
            await self._ended.wait()

    def cut(self) -> None:
        """End what is left: its jobs are cancelled, and its clients get an error."""
        self._server.should_exit = True
        self._calls.cancel()

    @property
    def grpc_address(self) -> str:
        """Where gRPC is served, once the gateway has started; empty if it is not."""
        return self._grpc.address

    async def _stop_grpc(self) -> None:
        await self._grpc.stop(self._config.shutdown_within_s + _LAST_WORDS_S)

    async def _serve(
        self,
        listener: socket.socket,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Shielded: it ends with the thread, which `cut` ends."""
        with trio.CancelScope(shield=True):
            async with trio.open_nursery() as nursery:
                await nursery.start(self._run_calls)
                await nursery.start(self._run_thread, listener)
                task_status.started()
                await self._ended.wait()
                self._calls.cancel()

    async def _run_calls(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        with self._calls:
            await self._bridge.run(task_status=task_status)
        with trio.move_on_after(_LAST_WORDS_S):
            await self._ended.wait()
        self._server.force_exit = True

    async def _run_thread(
        self,
        listener: socket.socket,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        token = trio.lowlevel.current_trio_token()

        async def serve() -> None:
            loop = asyncio.get_running_loop()
            self._bridge.attach(loop)
            self._server.on_started = lambda: token.run_sync_soon(task_status.started)
            await self._grpc.start()
            await self._server.serve(sockets=[listener])

        def run() -> None:
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(serve())

        # A limiter of its own: the default one is for short blocking calls, and this takes a life.
        # Shielded even from the calls' end: the thread is joined, never abandoned.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(run, limiter=trio.CapacityLimiter(1))
        self._ended.set()


class _Server(uvicorn.Server):
    """uvicorn, set up for us. Set `should_exit` to stop it; it looks ten times a second."""

    def __init__(
        self,
        app: GatewayApp,
        config: GatewayConfig,
        *,
        on_shutdown: Callable[[], Awaitable[None]],
    ) -> None:
        self._on_shutdown = on_shutdown
        self.on_started: Callable[[], None] = lambda: None
        # The network of the same process takes its descriptors too, and so does the database.
        places = min(config.connections_max, server_descriptors(raise_descriptor_limit()))
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded_protocol(ServerBounds(places, config.reader_within_s)),
                ws=BoundedWebSocket,
                ws_max_size=_MESSAGE_BYTES_MAX,
                # A frame would be unpacked whole before its size is looked at.
                ws_per_message_deflate=False,
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                backlog=_BACKLOG,
                timeout_keep_alive=KEEP_ALIVE_S,
            )
        )

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(super().shutdown(sockets))
            group.create_task(self._stop_others())

    async def _stop_others(self) -> None:
        await self._on_shutdown()


def _listener_of(config: GatewayConfig) -> socket.socket:
    """Raises AddressInUse, AddressInvalid."""
    if config.descriptor is not None:
        return inherit_listener(config.descriptor)
    return open_listener(config.host, config.port)


def inherit_listener(descriptor: int) -> socket.socket:
    """The listening socket that our service manager holds open. Raises AddressInvalid."""
    try:
        # A copy: the original stays open, whatever becomes of this one.
        listener = socket.socket(fileno=os.dup(descriptor))
    except OSError as error:
        raise AddressInvalid(f"descriptor {descriptor} is not a socket: {error.strerror}") from None
    if not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.close()
        raise AddressInvalid(f"the socket of descriptor {descriptor} does not listen")
    return listener


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
