"""The gateway's application with a fake market, both real threads and no sockets.

Trio runs in a thread, as the market's side; the test's own thread runs asyncio, as the HTTP side.
Requests go through httpx's ASGI transport, or through `exchange` where a test needs to see single
messages or to hang up.
"""

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, TypeVar

import httpx
import trio

from coordinator.batches.service import BatchService
from coordinator.gateway.bridge import Bridge
from coordinator.gateway.config import GatewayConfig
from coordinator.gateway.http.app import GatewayApp
from coordinator.gateway.http.context import GatewayContext
from coordinator.gateway.metrics import Metrics
from protocol.clock import Clock
from protocol.programs.runtime import Runtime
from tests.clocks import HandClock
from tests.coordinator.gateway.fake_market import API_KEY, NOW_MS, FakeMarket

T = TypeVar("T")

WITHIN_S = 20.0


class TrioThread:
    """A trio run in a thread of its own, with a bridge into it."""

    def __init__(self) -> None:
        self.bridge = Bridge()
        self._started = threading.Event()
        self._nursery: trio.Nursery | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop: Callable[[], None] = lambda: None
        self._thread = threading.Thread(target=lambda: trio.run(self._main))

    def __enter__(self) -> "TrioThread":
        self._thread.start()
        assert self._started.wait(WITHIN_S)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join(WITHIN_S)
        assert not self._thread.is_alive()

    def stop(self) -> None:
        self._stop()

    def start(self, run: Callable[..., Awaitable[None]]) -> None:
        """Returns when it has started; it is cancelled with the thread's run."""
        nursery, token = self._nursery, self._token
        assert nursery is not None
        assert token is not None
        trio.from_thread.run(nursery.start, run, trio_token=token)

    async def _main(self) -> None:
        token = self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:

            def stop() -> None:
                with suppress(trio.RunFinishedError):  # stopped before
                    token.run_sync_soon(nursery.cancel_scope.cancel)

            self._stop = stop
            self._nursery = nursery
            await nursery.start(self.bridge.run)
            self._started.set()


@dataclass
class Harness:
    """What a test works with."""

    app: GatewayApp
    market: FakeMarket
    metrics: Metrics
    bridge: Bridge
    clock: HandClock
    runner: asyncio.Runner

    def run(self, work: Awaitable[T]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(WITHIN_S):
                return await work

        return self.runner.run(bounded())

    def request(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        """One request with a good key, unless headers say otherwise."""

        async def send() -> httpx.Response:
            transport = httpx.ASGITransport(app=self.app)  # type: ignore[arg-type]
            headers = {"authorization": f"Bearer {API_KEY}"}
            async with httpx.AsyncClient(
                transport=transport, base_url="http://gateway", headers=headers
            ) as client:
                return await client.request(method, path, **arguments)

        return self.run(send())

    def post(self, path: str, body: object = None, **arguments: Any) -> httpx.Response:
        if body is not None:
            arguments["json"] = body
        return self.request("POST", path, **arguments)

    def get(self, path: str, **arguments: Any) -> httpx.Response:
        return self.request("GET", path, **arguments)

    def in_trio(self, callback: Callable[[], object]) -> None:
        self.bridge.run_in_trio(callback)

    async def wait(self, event: trio.Event) -> None:
        """Asyncio: until a trio event is set."""
        await self.bridge.call(event.wait)


@contextmanager
def harness(
    config: GatewayConfig | None = None,
    *,
    market: FakeMarket | None = None,
    make_filing: Callable[[FakeMarket, Clock], BatchService] | None = None,
) -> Iterator[Harness]:
    """With `make_filing`, its service runs too."""
    clock = HandClock(NOW_MS)
    numbers = iter(range(1, 2**32))
    runtime = Runtime(
        clock,
        entropy=lambda size: next(numbers).to_bytes(size),
        rng=None,  # type: ignore[arg-type]  # the gateway draws no lots
        stopwatch_ns=clock.monotonic_ns,
    )
    metrics = Metrics()
    market = market or FakeMarket()
    filing = make_filing(market, clock) if make_filing is not None else None
    with TrioThread() as trio_thread, asyncio.Runner() as runner:
        trio_thread.bridge.attach(runner.get_loop())
        context = GatewayContext.make(
            trio_thread.bridge,
            market,
            metrics,
            config=config or GatewayConfig(),
            runtime=runtime,
            filing=filing,
        )
        if filing is not None:
            trio_thread.start(filing.run)
        yield Harness(GatewayApp(context), market, metrics, trio_thread.bridge, clock, runner)


@dataclass
class Exchange:
    """One request, message by message."""

    messages: "asyncio.Queue[dict[str, Any]]"
    incoming: "asyncio.Queue[dict[str, Any]]"
    task: "asyncio.Task[None]"

    def hang_up(self) -> None:
        self.incoming.put_nowait({"type": "http.disconnect"})

    async def next(self) -> dict[str, Any]:
        return await self.messages.get()


def exchange(
    app: GatewayApp,
    path: str,
    body: object,
    *,
    key: str = API_KEY,
    http_version: str = "1.1",
    headers: Mapping[str, str] = MappingProxyType({}),
) -> Exchange:
    """Start a POST in this loop."""
    messages: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
    incoming.put_nowait({"type": "http.request", "body": json.dumps(body).encode()})
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "http_version": http_version,
        "headers": [
            (b"authorization", f"Bearer {key}".encode()),
            (b"content-type", b"application/json"),
            *((name.encode(), value.encode()) for name, value in headers.items()),
        ],
    }
    task = asyncio.ensure_future(app(scope, incoming.get, messages.put))
    return Exchange(messages, incoming, task)
