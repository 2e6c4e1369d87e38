"""One HTTP request as routes see it: headers, a bounded body, and when its client hangs up."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

from coordinator.buyer.job_name import JobName
from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import ApiError, Problem
from coordinator.gateway.http.body import CLOSE, ClientGone, read_body, read_pieces
from coordinator.gateway.http.fair_places import Place
from coordinator.gateway.http.json_bounds import is_quick
from coordinator.gateway.http.responses import Receive
from coordinator.gateway.http.strict_json import Fields, Json, parse_object
from coordinator.gateway.http.unpacking import unpacker_of
from protocol.ids import JobId
from protocol.payload import Chunk

__all__ = ["ClientGone", "Request", "Scope"]

Scope = dict[str, Any]

# Headers that change what is bought.
_STEERING_HEADERS = (
    b"x-capacloud-provider",
    b"x-session-id",
    b"inference-header-content-length",
)
_DIGITS_MAX = 10


class Request:
    """`started_at` is when it arrived, on the monotonic clock. `name` is of what it buys, if
    that is anything, `delivered` what has come of it so far, by choice, written by the market side.
    `caller` and `place` are set once known, `body_digest` once the body is read, `is_gone` once the
    client has hung up, `parameters` from the path once it is routed."""

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        *,
        request_id: str,
        name: JobName,
        started_at: float,
    ) -> None:
        self.scope = scope
        self.request_id = request_id
        self.name = name
        self.started_at = started_at
        self.caller: Caller | None = None
        self.place: Place | None = None
        self.is_gone = False
        self.parameters: dict[str, str] = {}
        # Of requests that are never sent again, any digest will do.
        self.body_digest = bytes(hashlib.sha256().digest_size)
        self.delivered: dict[int, list[Chunk]] = {}
        self._receive = receive
        self._watch: asyncio.Future[None] | None = None

    @property
    def job_id(self) -> JobId:
        """Of what it buys; fixed from here on."""
        return self.name.tell()

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
    def idempotency_key(self) -> str | None:
        """None of an empty one as well: all who send that would share it."""
        return self.header(b"idempotency-key") or None

    @property
    def retry_count(self) -> int | None:
        """How often a stock client has sent this request before; None of others."""
        text = self.header(b"x-stainless-retry-count") or ""
        return int(text) if text.isdecimal() and len(text) < _DIGITS_MAX else None

    @property
    def is_asked_to_keep(self) -> bool:
        """Whether the client wants its purchase to go on without it."""
        return (self.header(b"x-capacloud-keep") or "").lower() in ("true", "1")

    @property
    def content_type(self) -> str:
        """Without parameters, in lower case; empty if there is none."""
        return (self.header(b"content-type") or "").partition(";")[0].strip().lower()

    async def json(self, *, bytes_max: int, within_s: float, parsing: asyncio.Semaphore) -> Fields:
        """The body as one JSON object. Raises ApiError (400, 408, 413, 415, 429) and ClientGone.

        Bodies that take long to parse are parsed in a thread, as many at once as `parsing` allows.
        """
        if not _is_json(self.content_type):
            raise _wrong_media(f"send application/json, not {self.content_type[:128]}")
        body = await self.body(bytes_max=bytes_max, within_s=within_s)
        if is_quick(body):
            return Fields(self._parse(body))
        async with parsing:
            values = await asyncio.to_thread(self._parse, body)
        return Fields(values)

    def _parse(self, body: bytearray) -> Json:
        values = parse_object(body)
        if self.idempotency_key is not None:
            # A client that is written by hand may space and order its JSON anew.
            plain = json.dumps(values, sort_keys=True, separators=(",", ":"))
            self.body_digest = self._digest_of(bytearray(plain.encode()))
        return values

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
        if self.idempotency_key is not None or self.retry_count is not None:
            self.body_digest = self._digest_of(body)
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

    def _digest_of(self, body: bytearray) -> bytes:
        """Of all that makes one request another one. The boundary of a form is drawn anew each time
        that the form is sent."""
        boundary = (self.header(b"content-type") or "").partition("boundary=")[2].strip('"')
        parts: list[bytes | bytearray] = [self.method.encode(), self.path.encode()]
        parts += [(self.header(name) or "").encode() for name in _STEERING_HEADERS]
        parts.append(body.replace(boundary.encode(), b"") if boundary else body)
        found = hashlib.sha256()
        for part in parts:
            found.update(b"%d:" % len(part))
            found.update(part)
        return found.digest()

    def keep(self, input_bytes: int) -> None:
        """The body is parsed, and only this much of it is kept from here on."""
        if self.place is not None:
            self.place.shrink_to(input_bytes)

    def take_place(self) -> Place | None:
        """See `kept.keeper.ResendableRequest`."""
        place, self.place = self.place, None
        return place

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
