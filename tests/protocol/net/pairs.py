"""Two parties on a perfect in-memory network, for tests of what runs over streams."""

import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import trio

from protocol.net.channels import Channel
from protocol.net.link import Link, LinkLimits, serve_channels
from protocol.net.memory import PERFECT, MemoryNetwork, MemoryTransport
from protocol.net.memory_wire import Conditions
from protocol.net.transport import Stream
from tests.protocol.net.contract import key_of

RAW = "/test/raw/1"
CHANNELS = "/test/channels/1"
LIMITS = LinkLimits(channels_max=8)


class Pair:
    """`client` is connected to `server`; handlers are set through `serve` before entering."""

    def __init__(self, conditions: Conditions = PERFECT) -> None:
        self.network = MemoryNetwork(random.Random(5), conditions=conditions)
        self.client: MemoryTransport = self.network.transport(key_of(1))
        self.server: MemoryTransport = self.network.transport(key_of(2))
        self._raw: trio.MemorySendChannel[Stream]
        self._raw, self._accepted = trio.open_memory_channel[Stream](10)
        self.server.handle(RAW, self._keep_stream)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[trio.Nursery]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.server.run)
            await nursery.start(self.client.run)
            await self.client.connect(self.server.addresses[0], timeout_s=5)
            yield nursery
            nursery.cancel_scope.cancel()

    def serve_channels(self, on_channel: Callable[[Channel], Awaitable[None]]) -> None:
        async def handler(stream: Stream) -> None:
            await serve_channels(stream, on_channel, role="server", limits=LIMITS)

        self.server.handle(CHANNELS, handler)

    async def streams(self) -> tuple[Stream, Stream]:
        """A raw stream, as both sides see it."""
        ours = await self.client.open_stream(self.server.peer_id, RAW, timeout_s=5)
        return ours, await self._accepted.receive()

    async def link(self, nursery: trio.Nursery) -> Link:
        stream = await self.client.open_stream(self.server.peer_id, CHANNELS, timeout_s=5)
        link = Link(stream, role="client", limits=LinkLimits(channels_max=8))
        await link.greet()
        nursery.start_soon(link.run)
        return link

    async def _keep_stream(self, stream: Stream) -> None:
        await self._raw.send(stream)
        await trio.sleep_forever()


async def echo(channel: Channel) -> None:
    """A handler that answers every frame with itself."""
    while True:
        frame = await channel.receive()
        channel.send_nowait(frame.type, frame.body)
