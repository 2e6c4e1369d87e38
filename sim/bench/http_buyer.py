"""A buyer that measures: the smallest HTTP client that can stream a chat answer.

One task a stream, one connection kept for the next; it parses no more of an event than it needs, so
that on two cores it takes little from what it measures. Tests use real clients; this is for load.
"""

import json
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import trio

from protocol.errors import CapaError

ANSWER_WITHIN_S = 60.0
_READ_BYTES = 64 * 1024
_TEXT_MARKS = (b'"content":"', b'"text":"')


class BuyerError(CapaError):
    """The API did not answer as it should; the message has what it said."""


@dataclass(frozen=True, slots=True)
class TimedAnswer:
    """When the first text came after the request was sent, and how many tokens were billed."""

    first_s: float
    total_s: float
    tokens: int


class HttpBuyer:
    """Streams chat answers from the gateway at `base_url`; leaving it closes the connections."""

    def __init__(self, base_url: str, key: str, model: str) -> None:
        parts = urlsplit(base_url)
        self._host, self._port = parts.hostname or "", parts.port or 80
        self._key = key
        self._model = model
        self._idle: list[trio.SocketStream] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        while self._idle:
            await self._idle.pop().aclose()

    async def stream(self, prompt: str, tokens: int) -> TimedAnswer:
        """One answer, greedily decoded. Raises BuyerError."""
        messages = [{"role": "user", "content": prompt}]
        return await self._ask("chat/completions", {"messages": messages, "max_tokens": tokens})

    async def complete(self, prompt: str) -> TimedAnswer:
        """One more token of a text. Raises BuyerError."""
        return await self._ask("completions", {"prompt": prompt, "max_tokens": 1})

    async def stream_many(self, prompts: list[str], tokens: int, streams: int) -> list[TimedAnswer]:
        """All answers, at most `streams` at once."""
        return await _at_once(lambda prompt: self.stream(prompt, tokens), prompts, streams)

    async def complete_many(self, prompts: list[str], streams: int) -> list[TimedAnswer]:
        return await _at_once(self.complete, prompts, streams)

    async def _ask(self, path: str, body: dict[str, Any]) -> TimedAnswer:
        connection = self._idle.pop() if self._idle else await self._connect()
        try:
            with trio.fail_after(ANSWER_WITHIN_S):
                answer = await _exchange(connection, self._request(path, body))
        except trio.TooSlowError:
            await trio.aclose_forcefully(connection)
            raise BuyerError(f"no whole answer within {ANSWER_WITHIN_S:g} s") from None
        except BaseException:
            # The rest of an answer that was not read would be taken for the next one.
            await trio.aclose_forcefully(connection)
            raise
        self._idle.append(connection)
        return answer

    async def _connect(self) -> trio.SocketStream:
        return await trio.open_tcp_stream(self._host, self._port)

    def _request(self, path: str, body: dict[str, Any]) -> bytes:
        common = {
            "model": self._model,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        content = json.dumps(common | body).encode()
        head = (
            f"POST /v1/{path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\n"
            f"Authorization: Bearer {self._key}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(content)}\r\n\r\n"
        )
        return head.encode() + content


async def _at_once(
    buy: Callable[[str], Awaitable[TimedAnswer]], prompts: list[str], streams: int
) -> list[TimedAnswer]:
    waiting = list(reversed(prompts))
    answers: list[TimedAnswer] = []

    async def buy_next() -> None:
        while waiting:
            answers.append(await buy(waiting.pop()))

    async with trio.open_nursery() as nursery:
        for _ in range(streams):
            nursery.start_soon(buy_next)
    return answers


async def _exchange(connection: trio.SocketStream, request: bytes) -> TimedAnswer:
    """Send a request and read its answer to the last chunk of the chunked body."""
    began_s = time.perf_counter()
    await connection.send_all(request)
    received = bytearray()
    first_s = 0.0
    while not received.endswith(b"\r\n0\r\n\r\n"):
        data = await connection.receive_some(_READ_BYTES)
        if not data:
            raise BuyerError(f"the connection was closed after {bytes(received[-300:])!r}")
        received += data
        if not first_s and (_has_text(received)):
            first_s = time.perf_counter() - began_s
        if received.startswith(b"HTTP/1.1 ") and not received.startswith(b"HTTP/1.1 200"):
            raise BuyerError(f"the API answered {bytes(received[:600])!r}")
    total_s = time.perf_counter() - began_s
    return TimedAnswer(first_s or total_s, total_s, _completion_tokens(received))


def _has_text(received: bytearray) -> bool:
    """A delta with text has come; the opening one, with the role, is empty."""
    for mark in _TEXT_MARKS:
        start = 0
        while (start := received.find(mark, start)) >= 0:
            start += len(mark)
            if bytes(received[start : start + 1]) not in (b'"', b""):
                return True
    return False


def _completion_tokens(received: bytearray) -> int:
    """From the usage event, the last before [DONE]."""
    start = received.rfind(b'"completion_tokens":')
    if start < 0 or b"data: [DONE]" not in received:
        raise BuyerError(f"the answer ended early: {bytes(received[-600:])!r}")
    digits = received[start + 20 : start + 32].lstrip()
    return int(digits.split(b",")[0].split(b"}")[0])
