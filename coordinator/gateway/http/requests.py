"""One HTTP request as routes see it: headers, a bounded body, and when its client hangs up."""

import asyncio
from typing import Any

from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import ApiError, Problem, error_of
from coordinator.gateway.http.responses import Receive
from coordinator.gateway.http.strict_json import Fields, parse_object
from protocol.errors import Code

Scope = dict[str, Any]


class ClientGone(Exception):
    """The client hung up before its request was complete."""


class Request:
    """`started_at` is when it arrived, on the monotonic clock. `caller` is set once known,
    `is_gone` once the client has hung up, `parameters` from the path once it is routed."""

    def __init__(
        self, scope: Scope, receive: Receive, *, request_id: str, started_at: float
    ) -> None:
        self.scope = scope
        self.request_id = request_id
        self.started_at = started_at
        self.caller: Caller | None = None
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

    def header(self, name: bytes) -> str | None:
        for key, value in self.scope["headers"]:
            if key == name:
                return str(value, "latin-1")
        return None

    @property
    def content_type(self) -> str:
        """Without parameters, in lower case; empty if there is none."""
        return (self.header(b"content-type") or "").partition(";")[0].strip().lower()

    async def json(self, *, bytes_max: int, within_s: float) -> Fields:
        """The body as one JSON object. Raises ApiError (400, 408, 413, 415) and ClientGone."""
        if self.content_type not in ("application/json", ""):
            raise _wrong_media(f"send application/json, not {self.content_type}")
        return Fields(parse_object(await self.body(bytes_max=bytes_max, within_s=within_s)))

    async def body(self, *, bytes_max: int, within_s: float) -> bytes:
        """All of it, counted while it arrives. Raises ApiError (408, 413, 415) and ClientGone.

        From here on, the request's task is cancelled when the client hangs up.
        """
        if self.header(b"content-encoding") not in (None, "identity"):
            # A few kilobytes may unpack to gigabytes.
            raise _wrong_media("compressed request bodies are not accepted")
        announced = self.header(b"content-length") or ""
        if announced.isdecimal() and int(announced[:20]) > bytes_max:
            raise _too_large(bytes_max)
        try:
            async with asyncio.timeout(within_s):
                body = await self._collect(bytes_max)
        except TimeoutError:
            raise _too_slow() from None
        self._watch = asyncio.ensure_future(self._cancel_when_gone(asyncio.current_task()))
        return body

    def close(self) -> None:
        """The request is answered: stop watching its client."""
        if self._watch is not None:
            self._watch.cancel()

    async def _cancel_when_gone(self, task: asyncio.Task[Any] | None) -> None:
        message = await self._receive()
        if message["type"] == "http.disconnect" and task is not None:
            self.is_gone = True
            task.cancel()

    async def _collect(self, bytes_max: int) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            message = await self._receive()
            if message["type"] != "http.request":
                raise ClientGone
            part = message.get("body", b"")
            size += len(part)
            if size > bytes_max:
                raise _too_large(bytes_max)
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)


# Close the connection after these, or the client would send all of its body for nothing.
_CLOSE = ((b"connection", b"close"),)


def _too_slow() -> ApiError:
    return ApiError(
        Problem(
            408,
            "the body did not arrive in time",
            code="request_timeout",
            should_retry=True,
            headers=_CLOSE,
        )
    )


def _too_large(bytes_max: int) -> ApiError:
    error = error_of(Code.INPUT_TOO_LARGE, f"the body has more than {bytes_max} bytes")
    return error.but(headers=_CLOSE)


def _wrong_media(message: str) -> ApiError:
    return ApiError(Problem(415, message, code="unsupported_media_type", headers=_CLOSE))
