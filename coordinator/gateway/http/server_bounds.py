"""How many connections a server holds, in all and per address block, whatever they speak."""

import asyncio
import ipaddress
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.websockets.wsproto_impl import WSProtocol

# One address block may hold so many times the connections that are free: alone three quarters.
_ALPHA = 3


@dataclass(slots=True)
class ServerBounds:
    """Of one server, and how many connections each address block has."""

    connections_max: int = 16_384
    reader_within_s: float = 60.0
    by_block: dict[str, int] = field(default_factory=dict)
    connections: int = 0

    def enter(self, block: str) -> bool:
        """Count a connection in. False if it is too many; `leave` in any case."""
        self.connections += 1
        held = self.by_block[block] = self.by_block.get(block, 0) + 1
        free = self.connections_max - self.connections
        return free >= 0 and held <= max(1, _ALPHA * (free + 1))

    def leave(self, block: str) -> None:
        self.connections -= 1
        self.by_block[block] -= 1
        if not self.by_block[block]:
            del self.by_block[block]


class BoundedWebSocket(WSProtocol):
    """uvicorn's, within the same bounds of connections, and of the time of a stalled reader. Of a
    client that does not read nothing is read: each ping would leave a pong in memory."""

    _bounds: ServerBounds | None = None
    _block = ""
    _reader_timer: asyncio.TimerHandle | None = None
    _is_stalled = False

    def watch(self, bounds: ServerBounds, block: str) -> None:
        self._bounds, self._block = bounds, block

    def connection_lost(self, exc: Exception | None) -> None:
        self.resume_writing()
        if self._bounds is not None:
            self._bounds.leave(self._block)
        super().connection_lost(exc)

    async def receive(self) -> Any:
        message = await super().receive()
        # It resumed reading if nothing else waits.
        if self._is_stalled:
            self._pause_reading()
        return message

    def pause_writing(self) -> None:
        super().pause_writing()
        self._is_stalled = True
        self._pause_reading()
        if self._reader_timer is None and self._bounds is not None:
            self._reader_timer = self.loop.call_later(
                self._bounds.reader_within_s, self.transport.abort
            )

    def resume_writing(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None
        super().resume_writing()
        if self._is_stalled:
            self._is_stalled = False
            if not self.read_paused and not self.transport.is_closing():
                self.transport.resume_reading()

    def _pause_reading(self) -> None:
        if not self.transport.is_closing():
            self.transport.pause_reading()


def block_of(host: str) -> str:
    """The /24 or /56 that an address is in; what is no address stands for itself."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host
    prefix = 24 if address.version == 4 else 56
    return str(ipaddress.ip_network((address, prefix), strict=False))
