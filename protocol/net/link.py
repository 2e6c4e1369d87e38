"""Many conversations on one long-lived stream.

Opening a libp2p stream costs several round trips, writing to an open one a tenth of that. So two
parties share one stream per protocol, and a conversation is a channel: a number in every frame.
Only the side that opened the stream opens channels, each with its first frame.

The reader never waits for a consumer: frames go into their channel's buffer, and a conversation
that outgrows its bound is dropped, so that one slow consumer delays no other. (A stock py-libp2p
peer would moreover kill a stream that is not read for five seconds.)
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import structlog
import trio

from protocol.codec import decode, encode
from protocol.errors import CapaError, Code, ErrorBody, RemoteProtocolError, leaves
from protocol.framing import OPENING_TYPES, Frame, FrameType
from protocol.limits import CHANNELS_PER_PEER_MAX, MESSAGE_CHARS_MAX, MIB, PAYLOAD_BYTES_MAX
from protocol.net.channels import FRAME_OVERHEAD_BYTES, Channel
from protocol.net.deadlines import Deadlines
from protocol.net.errors import Backpressure, NetError, NetTimeout, StreamClosed
from protocol.net.frames import FLUSH_WITHIN_S, HELLO_WITHIN_S, STREAM_CHANNEL, FramedStream
from protocol.net.pace import CHANNEL_COST
from protocol.net.serve import Boundary
from protocol.net.transport import Stream

log = structlog.get_logger(__name__)

# A whole payload, or a whole answer, may wait for its consumer; no lawful conversation has more.
CHANNEL_BYTES_MAX = PAYLOAD_BYTES_MAX + 1 * MIB
# All conversations of one peer together.
LINK_BYTES_MAX = 64 * MIB
# A stream that carries questions and short answers only, such as a coordinator's.
ASKING_BYTES_MAX = 2 * MIB
# Channels that we closed and whose last frames may still be under way.
CLOSED_MAX = 4096
# u32 on the wire. A link that used them all is replaced by a new one.
CHANNEL_NUMBER_MAX = 2**32 - 1

# Handlers of channels that their peer has closed already, beyond those of open channels: a peer
# that opens and closes in a loop must not get more work done than one that waits.
LATE_HANDLERS_MAX = 64


@dataclass(frozen=True, slots=True)
class LinkLimits:
    """How much one stream may carry at once."""

    channels_max: int = CHANNELS_PER_PEER_MAX
    channel_bytes_max: int = CHANNEL_BYTES_MAX
    link_bytes_max: int = LINK_BYTES_MAX


DATA_LIMITS = LinkLimits()
ASKING_LIMITS = LinkLimits(channel_bytes_max=ASKING_BYTES_MAX, link_bytes_max=ASKING_BYTES_MAX)

OnChannel = Callable[[Channel], Awaitable[None]]


class Link:
    """A stream to one peer with its channels. `run` is its life; `failure` says why it ended."""

    def __init__(
        self,
        stream: Stream,
        *,
        role: str,
        on_channel: OnChannel | None = None,
        limits: LinkLimits = DATA_LIMITS,
    ) -> None:
        self.peer = stream.peer
        self.peer_role = ""
        self.failure: CapaError | None = None
        # Set when `run` has ended.
        self.ended = trio.Event()
        # trio's time when the last channel closed; a link with channels is not idle.
        self.idle_since = 0.0
        self._stream = stream
        self._framed = FramedStream(stream)
        self._role = role
        self._on_channel = on_channel
        self._limits = limits
        self._memory = stream.memory
        self._serving = 0
        self._channels: dict[int, Channel] = {}
        self._deadlines = Deadlines()
        self._last_number = STREAM_CHANNEL
        # Oldest first. First frames do not arrive in the order of their numbers, so a number alone
        # does not say whether its channel is new or over.
        self._closed_here: dict[int, None] = {}
        self._buffered_bytes = 0
        self._handlers: trio.Nursery | None = None
        self._life = trio.CancelScope()
        self._running = False
        self._is_leaving = False

    @property
    def is_open(self) -> bool:
        """Channels can be opened."""
        return (
            self._running
            and self._last_number < CHANNEL_NUMBER_MAX
            and not self._is_leaving
            and not self.is_superseded
        )

    @property
    def is_superseded(self) -> bool:
        """A new link would run over a better connection."""
        return self._stream.is_superseded

    @property
    def channels_open(self) -> int:
        return len(self._channels)

    async def greet(self, *, within_s: float = HELLO_WITHIN_S) -> None:
        """Exchange HELLO; the first thing on a stream. After an error the stream is gone.

        Raises RemoteProtocolError, StreamClosed, NetTimeout.
        """
        try:
            hello = await self._framed.exchange_hello(self._role, within_s=within_s)
        except (RemoteProtocolError, NetTimeout) as error:
            await self._framed.refuse(error_body(error))
            raise
        except (NetError, trio.Cancelled):
            with trio.CancelScope(shield=True):
                await self._framed.reset()
            raise
        self.peer_role = hello.role
        self.idle_since = trio.current_time()
        self._running = True

    async def run(self) -> None:
        """Carry frames until the stream ends or `close`; then wait for channel handlers.

        Never raises what a peer or the network did; that is in `failure` and in every channel.
        """
        try:
            async with trio.open_nursery() as handlers:
                self._handlers = handlers
                with self._life:
                    await self._carry()
                await self._end()
        finally:
            self.ended.set()
            # Cancelled from outside: no time to part in good order.
            if self._running:
                with trio.CancelScope(shield=True):
                    self._fail_channels(StreamClosed("the link was cancelled"))
                    await self._framed.reset()

    def open_channel(self) -> Channel:
        """Raises Backpressure at the bound of channels, StreamClosed if the link is over."""
        if not self.is_open:
            raise StreamClosed(f"the link to {self.peer} is closed")
        if len(self._channels) >= self._limits.channels_max:
            raise Backpressure(f"{len(self._channels)} channels to {self.peer} are open")
        self._last_number += 1
        return self._add_channel(self._last_number)

    def close(self) -> None:
        """End the link in good order: what is queued leaves first, then `run` returns."""
        self._framed.end()
        self._life.deadline = trio.current_time() + FLUSH_WITHIN_S

    def leave(self) -> None:
        """End the link in good order with its last channel."""
        self._is_leaving = True
        self._rest()

    # What a channel needs of its link.

    def send_frame(self, frame: Frame) -> None:
        self._framed.send_nowait(frame)

    async def wait_send_frame(self, frame: Frame) -> None:
        await self._framed.send(frame)

    def forget(self, channel: Channel, error: ErrorBody | None) -> None:
        """A channel was closed here: tell the peer, and drop what it still sends."""
        if self._channels.get(channel.number) is not channel:
            return  # The peer closed it first, and may have used its number again.
        del self._channels[channel.number]
        self._closed_here[channel.number] = None
        if len(self._closed_here) > CLOSED_MAX:
            del self._closed_here[next(iter(self._closed_here))]
        self._send_ending(channel.number, error)
        self._rest()

    def _rest(self) -> None:
        """A channel has ended, perhaps the last one."""
        self.idle_since = trio.current_time()
        if self._is_leaving and not self._channels:
            self.close()

    def _send_ending(self, number: int, error: ErrorBody | None) -> None:
        """ERROR if it failed, then CLOSE."""
        try:
            if error is not None:
                body = encode(_shortened(error))
                self._framed.send_reserved(Frame(FrameType.ERROR, number, body))
            self._framed.send_reserved(Frame(FrameType.CLOSE, number, b""))
        except StreamClosed:
            pass
        except Backpressure as failure:
            # Not even endings get through: the peer holds on to channels that we gave up.
            self.failure = self.failure or failure
            self._life.cancel()

    def consumed(self, size: int) -> None:
        self._buffered_bytes -= size
        self._memory.change(-size)

    # The life of the link.

    async def _carry(self) -> None:
        """Read and write until one of them ends."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._read, nursery.cancel_scope)
                nursery.start_soon(self._deadlines.run)
                await self._framed.run_writer()
                nursery.cancel_scope.cancel()
        except* (NetError, RemoteProtocolError) as group:
            self.failure = self.failure or _gravest(group)

    async def _read(self, both: trio.CancelScope) -> None:
        while frames := await self._framed.receive_batch():
            for frame in frames:
                self._dispatch(frame)
                await self._memory.pace.wait()
        both.cancel()

    async def _end(self) -> None:
        """Part from the peer in the way that fits how it ended, and fail what is still open."""
        self._running = False
        failure = self.failure
        reason = str(failure) if failure is not None else "the link was closed"
        self._fail_channels(StreamClosed(reason))
        if isinstance(failure, RemoteProtocolError):
            log.info(
                "link_refused",
                peer=self.peer,
                role=self.peer_role,
                code=failure.code,
                error=reason,
            )
            await self._framed.refuse(error_body(failure))
        elif failure is not None:
            log.debug("link_failed", peer=self.peer, role=self.peer_role, error=reason)
            await self._framed.reset()
        else:
            await self._framed.aclose()

    def _dispatch(self, frame: Frame) -> None:
        channel = self._channels.get(frame.channel)
        if channel is None:
            channel = self._accept(frame)
            if channel is None:
                return
        if frame.type is FrameType.CLOSE:
            del self._channels[frame.channel]
            self._rest()
            channel.fail(StreamClosed(f"{self.peer} closed the channel"))
            return
        size = len(frame.body) + FRAME_OVERHEAD_BYTES
        self._buffered_bytes += size
        self._memory.change(size)
        channel.deliver(frame, size)
        if channel.buffered_bytes > self._limits.channel_bytes_max:
            self._drop(channel)
        elif self._buffered_bytes > self._limits.link_bytes_max:
            self._drop(max(self._channels.values(), key=lambda each: each.buffered_bytes))

    def _accept(self, frame: Frame) -> Channel | None:
        """A frame for a channel that is not open: of the stream itself, new, or late."""
        if frame.channel == STREAM_CHANNEL:
            self._read_stream_frame(frame)
        if self._on_channel is None or frame.type is FrameType.CLOSE:
            return None
        if frame.channel in self._closed_here:
            # Late: the channel was closed here while the frame was under way. But a frame that
            # begins a channel is its first, so it cannot be late: the peer uses a number again,
            # and would wait for an answer for ever.
            if frame.type in OPENING_TYPES:
                reason = f"channel {frame.channel} was used on this stream before"
                self._send_ending(frame.channel, ErrorBody(Code.UNEXPECTED_FRAME, reason))
            return None
        self._memory.pace.spend(CHANNEL_COST)
        channel = self._add_channel(frame.channel)
        channels_max = self._limits.channels_max
        if len(self._channels) > channels_max or self._serving >= channels_max + LATE_HANDLERS_MAX:
            channel.close(ErrorBody(Code.BUSY, f"{channels_max} channels are open already"))
            return None
        if self._handlers is not None:
            self._serving += 1
            self._handlers.start_soon(self._serve, channel, self._on_channel)
        return channel

    def _read_stream_frame(self, frame: Frame) -> None:
        if frame.type is FrameType.ERROR:
            error = decode(ErrorBody, frame.body)
            raise StreamClosed(f"ended by the peer: {error.code}: {error.message}")
        raise RemoteProtocolError(
            f"{frame.type.name} does not belong on channel 0", code=Code.UNEXPECTED_FRAME
        )

    async def _serve(self, channel: Channel, on_channel: OnChannel) -> None:
        boundary = Boundary(on_channel, "channel")
        try:
            error = await boundary.run(channel)
        finally:
            self._serving -= 1
        channel.close(error_body(error) if error is not None else None)

    def _add_channel(self, number: int) -> Channel:
        channel = Channel(number, self.peer, self, self._deadlines)
        self._channels[number] = channel
        return channel

    def _drop(self, channel: Channel) -> None:
        """The conversation outgrew its bound: end it for both sides, keep the link."""
        log.warning(
            "channel_overflow", peer=self.peer, channel=channel.number, size=channel.buffered_bytes
        )
        channel.overflow()

    def _fail_channels(self, failure: StreamClosed) -> None:
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            channel.fail(failure)


async def serve_channels(
    stream: Stream,
    on_channel: OnChannel,
    *,
    role: str,
    limits: LinkLimits = DATA_LIMITS,
) -> None:
    """The accepting side: greet, then run `on_channel` for every channel that the peer opens.

    A handler's error goes to the peer as an ERROR frame and ends its channel only. When the stream
    ends, handlers are not cancelled: their next `receive` tells them, and they finish in peace.
    """
    link = Link(stream, role=role, on_channel=on_channel, limits=limits)
    await link.greet()
    await link.run()


def error_body(error: Exception) -> ErrorBody:
    """What a peer may learn of an error: its code if it has one, else only that it happened."""
    if isinstance(error, RemoteProtocolError):
        return _shortened(ErrorBody(error.code, str(error), error.retry_after_ms))
    if isinstance(error, NetTimeout):
        return ErrorBody(Code.DEADLINE_EXCEEDED, "it took too long")
    return ErrorBody(Code.INTERNAL, "internal error")


def _shortened(error: ErrorBody) -> ErrorBody:
    return ErrorBody(error.code, error.message[:MESSAGE_CHARS_MAX], error.retry_after_ms)


def _gravest(group: BaseExceptionGroup[CapaError]) -> CapaError:
    """Reader and writer both complain about a dead stream; a broken protocol explains more."""
    causes = [cause for cause in leaves(group) if isinstance(cause, CapaError)]
    return next((cause for cause in causes if isinstance(cause, RemoteProtocolError)), causes[0])
