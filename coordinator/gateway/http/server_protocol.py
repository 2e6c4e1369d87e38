"""uvicorn's HTTP protocol with bounds on what an unknown client costs: the size and the time of a
request's head, what stands around the bytes of a body (chunk extensions, trailers), requests that
wait on one connection, the time of a stalled reader, and connections in all and per address block.

Bodies are bounded by the application. An `Upgrade` that we do not support is ignored, as RFC 9110
§7.8 says: uvicorn's parser stops at it, and would lose the body. So are trailers: they must not
become headers (§6.5.1).
"""

import asyncio
import socket
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from coordinator.gateway.errors import Problem, ProblemKind
from coordinator.gateway.http.openai.dialect import OPENAI
from coordinator.gateway.http.server_bounds import BoundedWebSocket, ServerBounds, block_of

# Cookies, tokens and trace headers of a large company fit; nginx stops at 32 KiB.
HEAD_BYTES_MAX = 64 * 1024

# As Apache httpd. A header costs a hundred bytes beside its own, and may have only four.
HEADERS_MAX = 100

# Requests that wait for the answer of the one before them: one costs several kilobytes and may have
# 18 bytes. Clients in use do not pipeline.
PIPELINED_MAX = 16

# A head is one packet or a few. Also how long a fresh connection may say nothing at all.
HEAD_WITHIN_S = 15.0

# Longer than the pools of clients and proxies keep an idle connection, so that it is they who close
# it: Go and many load balancers keep it for 90 seconds.
KEEP_ALIVE_S = 120

# What a reader that does not read can make the kernel keep.
_SEND_BUFFER_BYTES = 256 * 1024

# Of a connection's headers, these speak of the connection itself or of the protocol to change to.
_HOP_HEADERS = (b"connection", b"upgrade", b"http2-settings")

# A proxy before us may have looked at the other one of two.
_SINGLE_HEADERS = frozenset(
    {
        b"authorization",
        b"content-type",
        b"host",
        b"idempotency-key",
        b"inference-header-content-length",
        b"x-api-key",
        b"x-capacloud-provider",
        b"x-session-id",
    }
)

_MALFORMED = Problem(400, "this is not a valid HTTP request", code="malformed_http")
_HEAD_TOO_LARGE = Problem(
    431,
    f"the head of the request has more than {HEAD_BYTES_MAX} bytes or {HEADERS_MAX} headers",
    code="head_too_large",
)
_TOO_MANY_PIPELINED = Problem(
    429, f"more than {PIPELINED_MAX} requests wait on this connection", code="rate_limit_exceeded"
)
_OVERLOADED = Problem(
    503,
    "there are too many connections: try again shortly",
    kind=ProblemKind.UNAVAILABLE,
    code="busy",
)


class _RefusedHeadError(Exception):
    """Ends the parsing of a head that is refused."""


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection. `bounds` is set by the server on a subclass of its own."""

    bounds: ClassVar[ServerBounds] = ServerBounds()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # it asks for a Transport
        # Since the head began, or since the last byte of a body.
        self._overhead_bytes = 0
        self._is_in_head = True
        self._is_upgrade = False
        self._websocket: Any = None
        self._method = b""
        self._problem = _MALFORMED
        self._head_timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None
        self._block = block_of(self.client[0] if self.client else "")
        self._limit_socket(transport.get_extra_info("socket"))
        if self.bounds.enter(self._block):
            self._expect_head()
        else:
            self._refuse(_OVERLOADED)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_head_timer()
        self.resume_writing()
        self.bounds.leave(self._block)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        while data and not self.transport.is_closing():
            if self._is_in_head:
                # The keep-alive timer watches between requests, and over the rest of a body that
                # was answered before it was whole. From the first byte of a head on this one does.
                self._unset_keepalive_if_required()
                if self._head_timer is None:
                    self._expect_head()
            piece = data[: HEAD_BYTES_MAX - self._overhead_bytes]
            self._overhead_bytes += len(piece)
            data = data[len(piece) :]
            self._feed(piece)
            if self._websocket is not None:
                self._websocket.data_received(data)
                return
            if self._overhead_bytes >= HEAD_BYTES_MAX:
                self._refuse(_HEAD_TOO_LARGE if self._is_in_head else _MALFORMED)

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._reader_timer is None:
            self._reader_timer = self.loop.call_later(
                self.bounds.reader_within_s, self.transport.abort
            )

    def resume_writing(self) -> None:
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None
        super().resume_writing()

    # Parser callbacks.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._is_in_head = True

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._is_in_head:
            return
        if len(self.headers) >= HEADERS_MAX:
            self._problem = _HEAD_TOO_LARGE
            raise _RefusedHeadError
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        # Several requests may come in one read, so the sum is taken here once more.
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > HEAD_BYTES_MAX:
            self._problem = _HEAD_TOO_LARGE
            raise _RefusedHeadError
        if len(self.pipeline) >= PIPELINED_MAX:
            self._problem = _TOO_MANY_PIPELINED
            raise _RefusedHeadError
        self._check_single_headers()
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise _RefusedHeadError
            self._is_upgrade = True
            self._method = self.parser.get_method()
            return
        self._is_in_head = False
        self._overhead_bytes = 0
        self._stop_head_timer()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._is_upgrade:
            self._overhead_bytes = 0
            super().on_body(body)

    def on_message_complete(self) -> None:
        if not self._is_upgrade:
            # The next byte begins another head.
            self._is_in_head = True
            self._overhead_bytes = 0
            super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(self._problem)

    # Below: what uvicorn has no hook for.

    def _feed(self, piece: bytes) -> None:
        while piece and not self.transport.is_closing():
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                if self._method == b"GET" and self._should_upgrade():
                    self._become_websocket(piece[upgrade.args[0] :])
                    return
                piece = self._head_without_upgrade() + piece[upgrade.args[0] :]
            except httptools.HttpParserError:
                self._refuse(self._problem)
            else:
                return

    def _check_single_headers(self) -> None:
        names = [name for name, _ in self.headers if name in _SINGLE_HEADERS]
        if len(set(names)) < len(names):
            twice = max(names, key=names.count).decode()
            self._problem = Problem(
                400, f"the header {twice} is given twice", code="malformed_http"
            )
        elif b"host" not in names and self.parser.get_http_version() == "1.1":
            self._problem = Problem(400, "the header host is missing", code="malformed_http")
        else:
            return
        raise _RefusedHeadError

    def _become_websocket(self, rest: bytes) -> None:
        """Give the connection to a protocol for it, and what came behind its head. That one leaves
        the bounds when the connection ends."""
        self._stop_head_timer()
        self.scope["method"] = "GET"
        self.handle_websocket_upgrade()
        protocol = self.transport.get_protocol()
        assert isinstance(protocol, BoundedWebSocket), "the server's own"
        protocol.watch(self.bounds, self._block)
        self._websocket = protocol
        if rest:
            protocol.data_received(rest)

    def _head_without_upgrade(self) -> bytes:
        """The same head again without what asks for the upgrade, for a new parser."""
        self._is_upgrade = False
        version = self.parser.get_http_version().encode()
        self.parser = httptools.HttpRequestParser(self)
        head = [self._method, b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name not in _HOP_HEADERS:
                head += [name, b": ", value, b"\r\n"]
            elif name == b"connection" and b"close" in value.lower():
                head += [b"connection: close\r\n"]
        return b"".join([*head, b"\r\n"])

    def _refuse(self, problem: Problem) -> None:
        """Answer and close. There is no request yet, so no route that has a dialect."""
        if self.transport.is_closing():
            return
        body = OPENAI.error_body(problem)
        head = b"content-type: application/json\r\nconnection: close\r\n"
        if problem.status == 503:
            head += b"retry-after: 1\r\n"
        self.transport.write(
            b"%b%bcontent-length: %d\r\n\r\n%b"
            % (STATUS_LINE[problem.status], head, len(body), body)
        )
        self.transport.close()

    def _limit_socket(self, connection: Any) -> None:
        if connection is None:
            return
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
        # The kernel gives up a peer that takes nothing for so long, also after we have closed.
        timeout_ms = int(1_000 * self.bounds.reader_within_s)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)

    def _expect_head(self) -> None:
        self._head_timer = self.loop.call_later(HEAD_WITHIN_S, self._give_up)

    def _give_up(self) -> None:
        self._head_timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            # Half of a further request has come while we still answer one.
            self._expect_head()
        elif self._is_in_head and not self.transport.is_closing():
            self.transport.close()

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


def bounded_protocol(bounds: ServerBounds) -> type[Any]:
    """The protocol class for a server with these bounds."""
    return type("ServerProtocol", (BoundedHttpProtocol,), {"bounds": bounds})
