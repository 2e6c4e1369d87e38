"""What a route returns: a whole response, or one that writes itself piece by piece."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from coordinator.gateway.errors import Headers

# ASGI's three callables, as far as this gateway uses them.
Message = dict[str, Any]
Send = Callable[[Message], Awaitable[None]]
Receive = Callable[[], Awaitable[Message]]

JSON_TYPE = b"application/json"
REQUEST_ID = b"x-request-id"


class Reply(Protocol):
    """Answers a request."""

    @property
    def status(self) -> int: ...

    async def send_to(self, send: Send, more_headers: Headers) -> None: ...


@dataclass(frozen=True, slots=True)
class Response:
    """A whole response."""

    status: int
    body: bytes
    content_type: bytes = JSON_TYPE
    headers: Headers = ()

    async def send_to(self, send: Send, more_headers: Headers) -> None:
        headers = [
            (b"content-type", self.content_type),
            (b"content-length", str(len(self.body)).encode()),
            *more_headers,
            *self.headers,
        ]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        await send({"type": "http.response.body", "body": self.body})


@dataclass(frozen=True, slots=True)
class WithHeaders:
    """A `Reply` with more headers."""

    reply: Reply
    headers: Headers

    @property
    def status(self) -> int:
        return self.reply.status

    async def send_to(self, send: Send, more_headers: Headers) -> None:
        await self.reply.send_to(send, (*more_headers, *self.headers))


def to_json(content: object) -> bytes:
    return json.dumps(content, ensure_ascii=False).encode()


def json_response(content: object) -> Response:
    return Response(200, to_json(content))


def header(name: str, value: object) -> tuple[bytes, bytes]:
    return name.encode(), str(value).encode("latin-1", "replace")
