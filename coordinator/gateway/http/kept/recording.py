"""A reply as it is made, kept from its start: any number of clients follow it, each from there.

A recording is transport-neutral: a head and parts. What is on the shelf is the same, encoded.
"""

import asyncio
from dataclasses import dataclass

from coordinator.gateway.errors import ApiError, Headers
from coordinator.gateway.http.responses import Message, Send
from protocol.codec import decode, encode


@dataclass(frozen=True, slots=True)
class KeptReply:
    """A whole reply on the shelf."""

    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes


class Recording:
    """`send` is for the one that makes the reply, `follow` for those that read it. `readers` follow
    it now; `was_read` once one of them has all of it."""

    def __init__(self) -> None:
        self.readers = 0
        self.was_read = False
        self.error: ApiError | None = None
        self._status = 0
        self._headers: Headers = ()
        self._parts: list[bytes] = []
        self._has_ended = False
        self._changed: asyncio.Future[None] | None = None

    @property
    def has_begun(self) -> bool:
        return self._status != 0

    @property
    def has_ended(self) -> bool:
        return self._has_ended

    @property
    def status(self) -> int:
        return self._status

    async def send(self, message: Message) -> None:
        """As ASGI's: the reply's head, or more of its body."""
        if message["type"] == "http.response.start":
            self._status, self._headers = message["status"], tuple(message["headers"])
        else:
            if message.get("body"):
                self._parts.append(message["body"])
            self._has_ended = not message.get("more_body", False)
        self._note_change()

    def fail(self, error: ApiError) -> None:
        """There is no reply, or no more of it."""
        self.error = error
        self._has_ended = True
        self._note_change()

    def load(self, data: bytes, more_headers: Headers = ()) -> None:
        """Take a whole reply off the shelf. Raises RemoteProtocolError."""
        kept = decode(KeptReply, data)
        self._status, self._headers = kept.status, (*kept.headers, *more_headers)
        self._parts, self._has_ended = [kept.body], True
        self._note_change()

    def to_bytes(self) -> bytes:
        """For the shelf."""
        return encode(KeptReply(self._status, tuple(self._headers), b"".join(self._parts)))

    async def wait_begun(self) -> None:
        """Raises ApiError if there is no reply."""
        while not (self.has_begun or self._has_ended):
            await self._wait_change()
        if self.error is not None and not self.has_begun:
            raise self.error

    async def follow(self, send: Send, more_headers: Headers) -> None:
        """Send all of it to one client, what is there at once and the rest as it comes."""
        headers = [*more_headers, *self._headers]
        await send({"type": "http.response.start", "status": self._status, "headers": headers})
        sent = 0
        while True:
            # Read before the parts: what was added before the end is then certainly sent.
            has_ended = self._has_ended
            if sent < len(self._parts):
                body = b"".join(self._parts[sent:])
                sent = len(self._parts)
                await send({"type": "http.response.body", "body": body, "more_body": True})
            elif has_ended:
                break
            else:
                await self._wait_change()
        await send({"type": "http.response.body", "body": b""})

    async def _wait_change(self) -> None:
        if self._changed is None:
            self._changed = asyncio.get_running_loop().create_future()
        # Shielded: one reader that leaves must not take the others' wake-up with it.
        await asyncio.shield(self._changed)

    def _note_change(self) -> None:
        changed, self._changed = self._changed, None
        if changed is not None and not changed.done():
            changed.set_result(None)
