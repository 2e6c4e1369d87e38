"""A user of the gateway with an API key: honest requests, and requests that are sent by hand."""

import json
from dataclasses import dataclass
from typing import Any

import httpx
import trio

from protocol.ids import PeerId

ANSWER_WITHIN_S = 8.0
_READ_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Service:
    """What honest requests met with."""

    answered: int
    asked: int
    slowest_s: float

    @property
    def is_whole(self) -> bool:
        return self.answered == self.asked

    def __str__(self) -> str:
        return f"{self.answered} of {self.asked} answered, slowest {self.slowest_s:.1f} s"


@dataclass(frozen=True, slots=True)
class GatewayReply:
    """`status` is 0 if no answer came in time."""

    status: int
    body: dict[str, Any]
    took_s: float
    headers: httpx.Headers | None = None


class GatewayUser:
    """`peer_id` is the account's."""

    def __init__(self, base_url: str, secret: str, peer_id: PeerId, key_id: str) -> None:
        self.peer_id = peer_id
        self.key_id = key_id
        self._base_url = base_url
        self._secret = secret

    @property
    def head(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._secret}", "Content-Type": "application/json"}

    async def post(
        self, path: str, body: dict[str, Any], *, within_s: float = ANSWER_WITHIN_S
    ) -> GatewayReply:
        """One request on a connection of its own."""
        started_at = trio.current_time()

        def took_s() -> float:
            return trio.current_time() - started_at

        client = httpx.AsyncClient(base_url=self._base_url, timeout=within_s, trust_env=False)
        async with client:
            try:
                with trio.fail_after(within_s):
                    response = await client.post(path, json=body, headers=self.head)
            except (httpx.HTTPError, trio.TooSlowError):
                return GatewayReply(0, {}, took_s())
        try:
            plain = response.json()
        except ValueError:
            plain = {}
        return GatewayReply(response.status_code, plain, took_s(), response.headers)

    async def complete(
        self,
        model: str,
        prompt: str = "Say hello",
        *,
        max_tokens: int = 8,
        within_s: float = ANSWER_WITHIN_S,
    ) -> GatewayReply:
        body = {"model": model, "prompt": prompt, "max_tokens": max_tokens}
        return await self.post("/v1/completions", body, within_s=within_s)

    async def ask_honestly(
        self, model: str, count: int, *, at_once: int = 1, within_s: float = ANSWER_WITHIN_S
    ) -> Service:
        """So many completions, some of them at once."""
        limiter = trio.CapacityLimiter(at_once)
        replies: list[GatewayReply] = []

        async def ask(number: int) -> None:
            async with limiter:
                replies.append(await self.complete(model, f"question {number}", within_s=within_s))

        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(ask, number)
        answered = sum(reply.status == 200 for reply in replies)
        return Service(answered, count, max(reply.took_s for reply in replies))

    async def open_slowly(self, path: str, body: dict[str, Any]) -> "SlowRequest":
        """Send the head and the first byte of the body."""
        data = json.dumps(body).encode()
        stream = await trio.open_tcp_stream(*_host_and_port(self._base_url))
        lines = [f"POST {path} HTTP/1.1", "Host: siege", f"Content-Length: {len(data)}"]
        lines += [f"{name}: {value}" for name, value in self.head.items()]
        head = "\r\n".join([*lines, "Connection: close", "", ""]).encode()
        await stream.send_all(head + data[:1])
        return SlowRequest(stream, data[1:])


class SlowRequest:
    """A request whose body is still to come."""

    def __init__(self, stream: trio.SocketStream, rest: bytes) -> None:
        self._stream = stream
        self._rest = rest

    async def finish(self, *, within_s: float = ANSWER_WITHIN_S) -> int:
        """Send the rest. Returns the status of the answer, or 0."""
        answer = b""
        async with self._stream as stream:
            with trio.move_on_after(within_s):
                try:
                    await stream.send_all(self._rest)
                    while data := await stream.receive_some(_READ_BYTES):
                        answer += data
                except trio.BrokenResourceError:
                    pass
        words = answer.split(b" ", 2)
        return int(words[1]) if len(words) > 2 and words[1].isdigit() else 0


def _host_and_port(base_url: str) -> tuple[str, int]:
    url = httpx.URL(base_url)
    assert url.port is not None, "a gateway's URL has a port"
    return url.host, url.port
