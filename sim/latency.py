"""Distance on loopback: a TCP proxy that delivers every byte a fixed time later.

A node that announces the proxy's port looks as far away as we like, to real libp2p over real
sockets: what matching measures is then a round trip that really takes that long.
"""

from dataclasses import dataclass
from functools import partial

import trio

# Bytes on the wire for at most a quarter second at loopback speed; more and TCP should push back.
_SEGMENTS_MAX = 1_024


@dataclass(frozen=True, slots=True)
class LatencyClass:
    """A distance by name; `rtt_ms` is what a ping over it takes."""

    name: str
    rtt_ms: float


# Same rack, same city, same continent, another continent.
LATENCY_CLASSES = (
    LatencyClass("rack", 0.0),
    LatencyClass("city", 6.0),
    LatencyClass("continent", 30.0),
    LatencyClass("ocean", 90.0),
)


class DelayProxy:
    """Forwards connections on a loopback port to another, half a round trip late each way."""

    def __init__(self, target_port: int, latency: LatencyClass) -> None:
        self._target_port = target_port
        self._one_way_s = latency.rtt_ms / 2_000
        self.port = 0

    async def run(self, *, task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen on a free port, which `started` reports, until cancelled."""
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        task_status.started(self.port)
        await trio.serve_listeners(self._forward, [listener])

    async def _forward(self, near: trio.SocketStream) -> None:
        try:
            far = await trio.open_tcp_stream("127.0.0.1", self._target_port)
        except OSError:
            return  # As a host does whose program is gone: the connection is dropped.
        async with far, trio.open_nursery() as nursery:
            both_ends = ((near, far), (far, near))
            for source, sink in both_ends:
                nursery.start_soon(partial(self._carry, source, sink, nursery.cancel_scope))

    async def _carry(
        self, source: trio.SocketStream, sink: trio.SocketStream, connection: trio.CancelScope
    ) -> None:
        """One direction. A reset on either side cuts the whole connection."""
        on_the_way, arriving = trio.open_memory_channel[tuple[float, bytes]](_SEGMENTS_MAX)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._deliver, arriving, sink)
                async with on_the_way:
                    async for data in source:
                        await on_the_way.send((trio.current_time() + self._one_way_s, bytes(data)))
        except* (trio.BrokenResourceError, trio.ClosedResourceError):
            connection.cancel()

    async def _deliver(
        self,
        arriving: trio.MemoryReceiveChannel[tuple[float, bytes]],
        sink: trio.SocketStream,
    ) -> None:
        async for due_at, data in arriving:
            await trio.sleep_until(due_at)
            await sink.send_all(data)
        await sink.send_eof()
