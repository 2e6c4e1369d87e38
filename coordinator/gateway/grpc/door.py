"""The gRPC server beside the HTTP one: both live on the gateway's asyncio thread."""

from grpc import aio

from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.grpc.calls import KeysFirst
from coordinator.gateway.grpc.service import PUBLIC, InferenceService
from coordinator.gateway.http.context import GatewayContext
from protocol.limits import MIB, OUTPUT_BYTES_MAX
from protocol.net.errors import AddressInUse

# Calls at once. A message is in memory before its key is known, so there are few.
_CALLS_MAX = 256
# Streams of one connection.
_STREAMS_MAX = 128
_HEAD_BYTES_MAX = 16 * 1024
_IDLE_MS = 10 * 60_000
# We ask a silent client whether it is there, and allow it to ask us ten times as often as gRPC's
# default of five minutes does.
_PING_MS = 60_000
_PING_WITHIN_MS = 20_000
_PINGS_APART_MS = 30_000


class GrpcDoor:
    """`address` is where it listens, once started."""

    def __init__(self, context: GatewayContext, config: GatewayConfig) -> None:
        self._context = context
        self._config = config
        self._server: aio.Server | None = None
        self.address = ""

    async def start(self) -> None:
        """Raises AddressInUse."""
        config = self._config
        if config.grpc_port is None:
            return
        server = aio.server(
            interceptors=(KeysFirst(self._context, PUBLIC),),
            maximum_concurrent_rpcs=_CALLS_MAX,
            options=(
                ("grpc.max_receive_message_length", config.body_bytes_max),
                ("grpc.max_send_message_length", OUTPUT_BYTES_MAX + MIB),
                ("grpc.max_concurrent_streams", _STREAMS_MAX),
                ("grpc.max_metadata_size", _HEAD_BYTES_MAX),
                ("grpc.max_connection_idle_ms", _IDLE_MS),
                ("grpc.keepalive_time_ms", _PING_MS),
                ("grpc.keepalive_timeout_ms", _PING_WITHIN_MS),
                ("grpc.http2.min_ping_interval_without_data_ms", _PINGS_APART_MS),
                # Another program of this machine must not take our port beside us.
                ("grpc.so_reuseport", 0),
            ),
        )
        server.add_generic_rpc_handlers((InferenceService(self._context).handler(),))
        host = f"[{config.grpc_host}]" if ":" in config.grpc_host else config.grpc_host
        try:
            port = server.add_insecure_port(f"{host}:{config.grpc_port}")
        except RuntimeError:
            raise AddressInUse(
                f"gRPC cannot listen on {host}:{config.grpc_port}: stop the other program or "
                "choose another port"
            ) from None
        await server.start()
        self._server = server
        self.address = f"{host}:{port}"

    async def stop(self, within_s: float) -> None:
        """Take no new calls, and cut those that have not ended in time."""
        if self._server is not None:
            await self._server.stop(within_s)
