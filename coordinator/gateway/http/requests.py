"""One HTTP request as routes see it: headers, a bounded body, and when its client hangs up."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import ApiError, Problem
from coordinator.gateway.http.body import CLOSE, ClientGone, read_body, read_pieces
from coordinator.gateway.http.fair_places import Place
from coordinator.gateway.http.json_bounds import SMALL_BYTES
from coordinator.gateway.http.responses import Receive
from coordinator.gateway.http.strict_json import Fields, Json, parse_object
from coordinator.gateway.http.unpacking import unpacker_of

__all__ = ["ClientGone", "Request", "Scope"]

Scope = dict[str, Any]


class Request:
    """`started_at` is when it arrived, on the monotonic clock. `caller` and `place` are set once
    known, `is_gone` once the client has hung up, `parameters` from the path once it is routed."""

    def __init__(
        self, scope: Scope, receive: Receive, *, request_id: str, started_at: float
    ) -> None:
        self.scope = scope
        self.request_id = request_id
        self.started_at = started_at
        self.caller: Caller | None = None
        self.place: Place | None = None
        self.is_gone = False
        self.parameters: dict[str, str] = {}
        self._receive = receive
        self._watch: asyncio.Future[None] | None = None

    @property
    def path(self) -> str:
        return str(self.scope["path"])

    @property
    def method(self) -> str:
        return str(self.scope["method"])

    @property
    def is_http_1_0(self) -> bool:
        return self.scope.get("http_version") == "1.0"

    def header(self, name: bytes) -> str | None:
        for key, value in self.scope["headers"]:
            if key == name:
                return str(value, "latin-1")
        return None

    @property
    def content_type(self) -> str:
        """Without parameters, in lower case; empty if there is none."""
        return (self.header(b"content-type") or "").partition(";")[0].strip().lower()

    async def json(self, *, bytes_max: int, within_s: float, parsing: asyncio.Semaphore) -> Fields:
        """The body as one JSON object. Raises ApiError (400, 408, 413, 415, 429) and ClientGone.

        Large bodies are parsed in a thread, as many at once as `parsing` allows.
        """
        if not _is_json(self.content_type):
            raise _wrong_media(f"send application/json, not {self.content_type[:128]}")
        body = await self.body(bytes_max=bytes_max, within_s=within_s)
        if len(body) <= SMALL_BYTES:
            return Fields(parse_object(body))
        async with parsing:
            values: Json = await asyncio.to_thread(parse_object, body)
        return Fields(values)

    async def body(self, *, bytes_max: int, within_s: float) -> bytearray:
        """All of it. Raises ApiError (408, 413, 415, 429) and ClientGone.

        From here on, the request's task is cancelled when the client hangs up.
        """
        assert self.place is not None, "only requests of a caller have a body that is read"
        unpacker = unpacker_of(self.header(b"content-encoding"))
        body = await read_body(
            self._receive,
            self.place,
            announced=self._announced(),
            bytes_max=bytes_max,
            within_s=within_s,
            unpacker=unpacker,
        )
        self._watch = asyncio.ensure_future(self._cancel_when_gone(asyncio.current_task()))
        return body

    def pieces(self, *, bytes_max: int) -> AsyncIterator[bytes]:
        """The body as it arrives, for one too large for memory: nothing of it is kept. Raises
        ApiError (408, 413, 415) and ClientGone."""
        encoding = self.header(b"content-encoding")
        if encoding not in (None, "identity"):
            raise _wrong_media(f"send the body without content-encoding, not as {encoding[:32]}")
        return read_pieces(self._receive, announced=self._announced(), bytes_max=bytes_max)

    def _announced(self) -> int:
        """The content length, or 0."""
        announced = self.header(b"content-length") or ""
        return int(announced[:20]) if announced.isdecimal() else 0

    def keep(self, input_bytes: int) -> None:
        """The body is parsed, and only this much of it is kept from here on."""
        if self.place is not None:
            self.place.shrink_to(input_bytes)

    def close(self) -> None:
        """The request is answered: stop watching its client, and free its place."""
        if self._watch is not None:
            self._watch.cancel()
        if self.place is not None:
            self.place.leave()

    async def _cancel_when_gone(self, task: asyncio.Task[Any] | None) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect" and task is not None:
            self.is_gone = True
            task.cancel()


def _is_json(content_type: str) -> bool:
    """Clients without a JSON library say `text/plain`, or nothing."""
    is_json = content_type in ("application/json", "text/json", "text/plain", "")
    return is_json or (content_type.startswith("application/") and content_type.endswith("+json"))


def _wrong_media(message: str) -> ApiError:
    return ApiError(Problem(415, message, code="unsupported_media_type", headers=CLOSE))
