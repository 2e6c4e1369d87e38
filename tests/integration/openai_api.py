"""An API to try the stock `openai` client on: its address, a key, and the models that it serves.

`served_gateway` is the real HTTP server in front of a scripted market. What only needs an `Api`
holds for a whole running market too, and is tested there as well.
"""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import trio

from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.metrics import Metrics
from coordinator.gateway.server import Gateway
from protocol.messages import Task
from tests.coordinator.gateway.fake_market import API_KEY, NAMES, FakeMarket

WITHIN_S = 20.0


@dataclass(frozen=True)
class Api:
    """`url` is the server's root; OpenAI's API is below `/v1`."""

    url: str
    key: str
    chat_model: str
    embedding_model: str
    image_model: str

    @property
    def base_url(self) -> str:
        return f"{self.url}/v1"


@dataclass
class Served:
    """A gateway in a thread. `stop` tells it to end, in good order; leaving waits for that."""

    api: Api
    market: FakeMarket
    stop: Callable[[], None]
    ended: threading.Event
    token: trio.lowlevel.TrioToken
    grpc_address: str

    def connect(self) -> socket.socket:
        host, port = self.api.url.removeprefix("http://").split(":")
        return socket.create_connection((host, int(port)), timeout=WITHIN_S)

    def request_bytes(self, body: dict[str, object]) -> bytes:
        """A chat completion as it is sent."""
        content = json.dumps(body).encode()
        return (
            f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer "
            f"{self.api.key}\r\ncontent-type: application/json\r\n"
            f"content-length: {len(content)}\r\n\r\n"
        ).encode() + content

    def in_trio(self, callback: Callable[[], object]) -> None:
        self.token.run_sync_soon(callback)

    def wait(self, event: trio.Event) -> None:
        """From a test's thread, for an event of the market's."""

        async def wait_event() -> None:
            with trio.fail_after(WITHIN_S):
                await event.wait()

        trio.from_thread.run(wait_event, trio_token=self.token)


@contextmanager
def served_gateway(config: GatewayConfig | None = None) -> Iterator[Served]:
    """Serve a scripted market on a free port."""
    ready, ended = threading.Event(), threading.Event()
    found: list[tuple[str, trio.lowlevel.TrioToken, trio.CancelScope, str]] = []
    market = FakeMarket()

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as nursery:
                gateway = Gateway(config or GatewayConfig(port=0, grpc_port=0), market, Metrics())
                url = await nursery.start(gateway.run)
                token = trio.lowlevel.current_trio_token()
                found.append((url, token, scope, gateway.grpc_address))
                ready.set()
        ended.set()

    thread = threading.Thread(target=lambda: trio.run(main))
    thread.start()
    assert ready.wait(WITHIN_S), "the gateway does not start"
    url, token, scope, grpc_address = found[0]

    def stop() -> None:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(scope.cancel)

    try:
        yield Served(api_at(url), market, stop, ended, token, grpc_address)
    finally:
        stop()
        thread.join(WITHIN_S)
        assert not thread.is_alive(), "the gateway does not stop"


def read_all(connection: socket.socket) -> bytes:
    """Until the other side closes, however it does that."""
    parts = []
    try:
        while part := connection.recv(65_536):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def api_at(url: str) -> Api:
    return Api(
        url,
        API_KEY,
        NAMES[Task.CAUSAL_LM],
        NAMES[Task.EMBEDDING],
        NAMES[Task.IMAGE_CLASSIFICATION],
    )
