"""One long-lived stream per peer for one protocol, opened when first needed and shared by all.

Callers ask for a channel and never see the stream. When it dies, its channels fail and the next
caller gets a new one; an idle line is not reopened. When a better connection to the peer is made
(direct, where this one runs through a relay), the next caller gets a new one as well.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import structlog
import trio

from protocol.errors import CapaError, RemoteProtocolError
from protocol.ids import PeerId
from protocol.limits import CHANNELS_PER_PEER_MAX
from protocol.net.channels import Channel
from protocol.net.errors import (
    ConnectFailed,
    NetError,
    NetTimeout,
    PeerMismatch,
    StreamClosed,
)
from protocol.net.link import Link, LinkLimits
from protocol.net.racing import FailedDials, connect_first
from protocol.net.transport import Transport

__all__ = ["Channel", "Link", "PoolOptions", "PoolStatistics", "StreamPool"]

log = structlog.get_logger(__name__)

# Failures that the next try may not meet: the network's mood. Anything else is an answer.
WORTH_RETRYING = (ConnectFailed, StreamClosed, NetTimeout)


@dataclass(frozen=True, slots=True)
class PoolOptions:
    """How a pool opens and keeps streams."""

    # One opening, with its retries. Callers may give up earlier; the next one profits.
    open_within_s: float = 10.0
    tries: int = 3
    # Doubles each time, times a random factor, so that the clients of a node that restarts do not
    # come back all at once.
    backoff_s: float = 0.05
    # Opening costs milliseconds and an idle stream a few kilobytes: keep it for a pause in a chat.
    idle_s: float = 300.0
    channels_max: int = CHANNELS_PER_PEER_MAX


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """Gauges, and counters since start."""

    links: int
    channels: int
    opened: int
    failed: int


class _Opening:
    """A stream being opened, and the callers that wait for it."""

    def __init__(self) -> None:
        self.addresses: dict[str, None] = {}
        self.done = trio.Event()
        self.link: Link | None = None
        self.error: CapaError = StreamClosed("the stream pool was stopped")


class StreamPool:
    """Channels to peers over `protocol_id`. `run` must be running."""

    def __init__(
        self,
        transport: Transport,
        protocol_id: str,
        *,
        role: str,
        rng: random.Random,
        options: PoolOptions = PoolOptions(),
    ) -> None:
        self._transport = transport
        self._protocol_id = protocol_id
        self._role = role
        self._rng = rng
        self._options = options
        self._links: dict[PeerId, Link] = {}
        self._openings: dict[PeerId, _Opening] = {}
        self._failures = FailedDials()
        self._nursery: trio.Nursery | None = None
        self._opened = 0
        self._failed = 0

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Own the streams until cancelled."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                task_status.started()
                try:
                    await self._close_idle_forever()
                finally:
                    # Before the nursery is closed: no task may be started in it then.
                    self._nursery = None
        finally:
            self._links.clear()

    async def open_channel(
        self, peer: PeerId, *, addresses: Sequence[str] = (), timeout_s: float
    ) -> Channel:
        """A new conversation with `peer`, dialled at `addresses` if it is not connected yet.

        Raises NetError: ConnectFailed, ProtocolUnsupported, NetTimeout; Backpressure if too many
        channels to this peer are open.
        """
        link = self._links.get(peer)
        if link is not None and link.is_open:
            await trio.lowlevel.checkpoint_if_cancelled()
            return link.open_channel()
        with trio.move_on_after(timeout_s):
            return (await self._wait_link(peer, addresses)).open_channel()
        raise NetTimeout(f"no stream to {peer} within {timeout_s:g} s")

    async def wait_closed(self, peer: PeerId) -> None:
        """Until the stream to a peer that is open now has ended; at once if there is none."""
        link = self._links.get(peer)
        if link is None:
            await trio.lowlevel.checkpoint()
        else:
            await link.ended.wait()

    def close(self, peer: PeerId) -> None:
        """End the stream to a peer, if there is one; its channels fail."""
        link = self._links.get(peer)
        if link is not None:
            link.close()

    def statistics(self) -> PoolStatistics:
        return PoolStatistics(
            links=len(self._links),
            channels=sum(link.channels_open for link in self._links.values()),
            opened=self._opened,
            failed=self._failed,
        )

    async def _wait_link(self, peer: PeerId, addresses: Sequence[str]) -> Link:
        """The peer's link: the one that is open, or the outcome of the opening under way."""
        opening = self._openings.get(peer)
        if opening is None:
            if self._nursery is None:
                raise StreamClosed("the stream pool is not running")
            opening = self._openings[peer] = _Opening()
            # In the pool's nursery: the first caller may give up while others still wait.
            self._nursery.start_soon(self._open_and_carry, peer, opening)
        opening.addresses.update(dict.fromkeys(addresses))
        await opening.done.wait()
        if opening.link is None:
            raise _as_net_error(opening.error)
        return opening.link

    async def _open_and_carry(self, peer: PeerId, opening: _Opening) -> None:
        """Open the link, hand it to all that wait, and carry it until it ends."""
        try:
            link = await self._open(peer, opening)
        except (NetError, RemoteProtocolError) as error:
            self._failed += 1
            opening.error = error
            return
        else:
            self._opened += 1
            former = self._links.get(peer)
            opening.link = self._links[peer] = link
            if former is not None:
                former.leave()
        finally:
            del self._openings[peer]
            opening.done.set()
        await link.run()
        if self._links.get(peer) is link:
            del self._links[peer]

    async def _open(self, peer: PeerId, opening: _Opening) -> Link:
        """Try, wait, try again. Raises NetError, RemoteProtocolError."""
        options = self._options
        with trio.move_on_after(options.open_within_s):
            for attempt in range(options.tries):
                try:
                    return await self._try_open(peer, opening)
                except PeerMismatch:
                    raise
                except WORTH_RETRYING as error:
                    if attempt + 1 == options.tries:
                        raise
                    wait_s = options.backoff_s * 2**attempt * self._rng.uniform(0.5, 1.5)
                    log.info(
                        "stream_open_retried", peer=peer, error=str(error), wait_s=round(wait_s, 3)
                    )
                    await trio.sleep(wait_s)
        raise NetTimeout(f"no stream to {peer} within {options.open_within_s:g} s")

    async def _try_open(self, peer: PeerId, opening: _Opening) -> Link:
        within_s = self._options.open_within_s
        if peer not in self._transport.connected_peers():
            await connect_first(
                self._transport,
                peer,
                tuple(opening.addresses),
                within_s=within_s,
                failures=self._failures,
            )
        stream = await self._transport.open_stream(peer, self._protocol_id, timeout_s=within_s)
        link = Link(
            stream, role=self._role, limits=LinkLimits(channels_max=self._options.channels_max)
        )
        await link.greet()
        return link

    async def _close_idle_forever(self) -> None:
        while True:
            await trio.sleep(self._options.idle_s / 4)
            oldest = trio.current_time() - self._options.idle_s
            for link in self._links.values():
                is_idle = link.idle_since <= oldest or link.is_superseded
                if link.channels_open == 0 and is_idle:
                    link.close()


def _as_net_error(error: CapaError) -> NetError:
    """One failed opening has many waiters: each gets an error of its own. A peer that breaks the
    protocol while greeting is, to a caller that wants a channel, a peer that cannot be reached."""
    kind = type(error) if isinstance(error, NetError) else ConnectFailed
    return kind(*error.args)
