"""uvicorn's HTTP protocol with bounds on what precedes a request.

uvicorn waits for the head of a request for ever and takes it at any size: a thousand clients that
send one byte a minute would hold a thousand connections. Bodies are bounded by the application.
"""

import asyncio
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

# Cookies, tokens and trace headers of a large company fit; nginx stops at 32 KiB.
HEAD_BYTES_MAX = 64 * 1024

# A head is one packet or a few. Also how long a fresh connection may say nothing at all.
HEAD_WITHIN_S = 15.0

_OVERLOADED_BODY = (
    b'{"error": {"message": "too many connections: try again", '
    b'"type": "service_unavailable_error", "param": null, "code": "busy"}}'
)
_OVERLOADED = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\n"
    b"retry-after: 1\r\nconnection: close\r\ncontent-length: %d\r\n\r\n%b"
) % (len(_OVERLOADED_BODY), _OVERLOADED_BODY)


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. `connections_max` is set by the server on a subclass of its own."""

    connections_max: ClassVar[int] = 16_384

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # it asks for a Transport
        self._head_bytes = 0
        self._head_timer: asyncio.TimerHandle | None = None
        if len(self.connections) > self.connections_max:
            self.transport.write(_OVERLOADED)
            self.transport.close()
        else:
            self._expect_head()

    def data_received(self, data: bytes) -> None:
        if self._is_in_head:
            self._head_bytes += len(data)
            if self._head_timer is None:
                # The first byte after a pause; between requests the keep-alive timer watches.
                self._expect_head()
        super().data_received(data)
        if not self._is_in_head:
            self._head_bytes = 0
            self._stop_timer()
        elif self._head_bytes > HEAD_BYTES_MAX and not self.transport.is_closing():
            self.send_400_response("The head of the request is too large.")

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    @property
    def _is_in_head(self) -> bool:
        """Between requests, or in the head of one."""
        return self.cycle is None or self.cycle.response_complete

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_WITHIN_S, self._give_up)

    def _give_up(self) -> None:
        self._head_timer = None
        if self._is_in_head and not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bounded_protocol(connections_max: int) -> type[Any]:
    """The protocol class for a server that takes so many connections."""
    return type("ServerProtocol", (BoundedHttpProtocol,), {"connections_max": connections_max})
