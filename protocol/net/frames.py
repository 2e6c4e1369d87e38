"""Whole frames over a byte stream: cutting what arrives, and joining what leaves.

A write costs the same for one frame as for thirty: lock, encryption, system call, and all of it
again on the other side. So frames wait in a queue for the one writer, and whatever has gathered
while the last write was under way leaves in the next.
"""

import math
from collections import deque
from contextlib import suppress
from dataclasses import dataclass

import trio
from trio.lowlevel import ParkingLot

from protocol.codec import decode, encode
from protocol.errors import Code, ErrorBody, RemoteProtocolError
from protocol.framing import VERSION, Frame, FrameDecoder, FrameType, encode_frame
from protocol.ids import PeerId
from protocol.limits import KIB, MIB
from protocol.net.errors import Backpressure, NetError, NetTimeout, StreamClosed
from protocol.net.transport import Stream

# Joined frames fit one Noise message (65,519 bytes) together with Yamux's header.
WRITE_BYTES_MAX = 60 * KIB

# A frame above this waits its turn behind those of other channels: a chunk of tokens is a few
# hundred bytes, a piece of an upload 128 KiB.
BULK_BYTES_MIN = 16 * KIB

# Four of the largest payloads may wait on one stream. More means that the peer does not read.
QUEUE_BYTES_MAX = 33 * MIB

# Ending frames must go out even when the queue is full, or the peer would hold what we gave up.
RESERVE_BYTES = 1 * MIB

# A peer that takes nothing for this long while its connection answers pings is stuck.
WRITE_WITHIN_S = 30.0

# The longest that one frame may take from its first byte to its last: 256 KiB at 70 kbit/s.
FRAME_WITHIN_S = 30.0

# Both sides send HELLO at once, so this is one round trip, on any link that is of use.
HELLO_WITHIN_S = 5.0

# On closing, what is queued gets this long to leave.
FLUSH_WITHIN_S = 2.0
# Long enough for what was sent before the peer could hear that it is refused.
LINGER_S = 1.0

ROLE_CHARS_MAX = 32
VERSIONS_MAX = 16

# The channel of the stream itself: HELLO, and errors that end the stream.
STREAM_CHANNEL = 0


@dataclass(frozen=True, slots=True)
class Hello:
    """The first frame of each side: the frame versions that it speaks, and what it is."""

    versions: tuple[int, ...]
    role: str

    def __post_init__(self) -> None:
        if len(self.versions) > VERSIONS_MAX or len(self.role) > ROLE_CHARS_MAX:
            raise ValueError("the greeting is too long")


class FramedStream:
    """Sends and receives frames. One task runs `run_writer`, one task receives, any task sends."""

    def __init__(self, stream: Stream, *, queue_bytes_max: int = QUEUE_BYTES_MAX) -> None:
        self.peer: PeerId = stream.peer
        self._stream = stream
        self._memory = stream.memory
        self._decoder = FrameDecoder()
        # When the frame that has arrived in part must be whole, and how many were cut before it.
        self._frame_due_at = math.inf
        self._frames_before = -1
        self._queue_bytes_max = queue_bytes_max
        self._queued_bytes = 0
        self._charged_bytes = 0
        self._urgent: deque[bytes] = deque()
        # Channel → its frames in order. A channel that has bulk waiting puts everything here, so
        # that nothing of it overtakes; channels take turns.
        self._bulk: dict[int, deque[bytes]] = {}
        self._work = ParkingLot()
        # To wake a writer that is awake costs as much as to queue a frame.
        self._is_writer_parked = False
        self._room = ParkingLot()
        self._ending = False
        self._closed = False

    async def exchange_hello(self, role: str, *, within_s: float = HELLO_WITHIN_S) -> Hello:
        """Greet, and read the greeting. Before the writer runs.

        Raises RemoteProtocolError (UNKNOWN_VERSION, UNEXPECTED_FRAME, MALFORMED), StreamClosed,
        NetTimeout.
        """
        ours = Frame(FrameType.HELLO, STREAM_CHANNEL, encode(Hello((VERSION,), role)))
        try:
            with trio.fail_after(within_s):
                await self._stream.send_all(encode_frame(ours))
                frame = await self.receive()
        except trio.TooSlowError:
            raise NetTimeout(f"{self.peer} did not greet within {within_s:g} s") from None
        if frame is None:
            raise StreamClosed(f"{self.peer} closed the stream without a greeting")
        return _read_hello(frame)

    def send_nowait(self, frame: Frame) -> None:
        """Queue a frame. Raises Backpressure if the queue is full, StreamClosed if it is over."""
        data = encode_frame(frame)
        if self._queued_bytes + len(data) > self._queue_bytes_max:
            self._check_open()
            raise Backpressure(f"{self._queued_bytes} bytes wait for {self.peer} already")
        self._put(frame.channel, data)

    def send_reserved(self, frame: Frame) -> None:
        """Queue a small frame that ends something, for which there is always room. Raises
        Backpressure only when even the reserve is used up."""
        data = encode_frame(frame)
        if self._queued_bytes + len(data) > self._queue_bytes_max + RESERVE_BYTES:
            raise Backpressure(f"{self.peer} reads nothing, not even endings")
        self._put(frame.channel, data)

    async def send(self, frame: Frame) -> None:
        """Queue a frame, waiting for room. Raises StreamClosed."""
        data = encode_frame(frame)
        await trio.lowlevel.checkpoint()
        while self._queued_bytes + len(data) > self._queue_bytes_max:
            self._check_open()
            await self._room.park()
        self._put(frame.channel, data)

    async def receive(self) -> Frame | None:
        """The next frame, or None at the end of the stream.

        Raises RemoteProtocolError (the frame's fault, TRUNCATED, or DEADLINE_EXCEEDED if it takes
        too long), StreamClosed.
        """
        while True:
            frame = self._decoder.next_frame()
            if frame is not None:
                await trio.lowlevel.checkpoint()
                return frame
            if not await self._fill():
                return None

    async def receive_batch(self) -> list[Frame]:
        """All whole frames that are here or come next, at least one; empty at the end.

        One wait for what the peer joined into one write, rather than one for every frame. Raises
        as `receive`.
        """
        frames = self._decoded()
        if frames:  # They came in one read with the greeting.
            await trio.lowlevel.checkpoint()
        while not frames and await self._fill():
            frames = self._decoded()
        return frames

    async def run_writer(self) -> None:
        """Write what is queued until the stream is closed. Raises StreamClosed, NetTimeout."""
        try:
            while True:
                batch = self._take()
                if not batch:
                    if self._ending:
                        return
                    self._is_writer_parked = True
                    await self._work.park()
                    continue
                # Nearly always there is room; a deadline and a turn of the loop cost 100 calls.
                if not self._stream.send_nowait(batch):
                    with trio.fail_after(WRITE_WITHIN_S):
                        await self._stream.send_all(batch)
                self._queued_bytes -= len(batch)
                self._charge()
                self._room.unpark_all()
        except trio.TooSlowError:
            raise NetTimeout(f"{self.peer} took nothing for {WRITE_WITHIN_S:g} s") from None
        finally:
            self._closed = True
            self._room.unpark_all()
            self._charge()

    def end(self) -> None:
        """Take no more frames; the writer returns when the queued ones have left."""
        self._ending = True
        self._work.unpark_all()
        self._room.unpark_all()

    async def aclose(self) -> None:
        """Close in good order: what is queued leaves first, if the peer takes it soon."""
        self.end()
        with trio.move_on_after(FLUSH_WITHIN_S):
            while self._queued_bytes and not self._closed:
                await self._room.park()
        self._closed = True
        self._charge()
        await self._stream.aclose()

    async def reset(self) -> None:
        self._closed = self._ending = True
        self._work.unpark_all()
        self._room.unpark_all()
        self._charge()
        await self._stream.reset()

    async def refuse(self, error: ErrorBody) -> None:
        """Tell the peer why, then end the stream. Without the writer; best effort.

        What the peer has sent meanwhile is read and dropped for a moment: a stream that is closed
        with data under way is reset, and the reset could overtake the reason.
        """
        self._closed = self._ending = True
        self._charge()
        frame = Frame(FrameType.ERROR, STREAM_CHANNEL, encode(error))
        with trio.move_on_after(FLUSH_WITHIN_S) as scope, suppress(NetError):
            await self._stream.send_all(encode_frame(frame))
            await self._stream.send_eof()
            with trio.move_on_after(LINGER_S):
                while await self._stream.receive_some():
                    pass
            await self._stream.aclose()
        if scope.cancelled_caught:
            await self._stream.reset()

    def _charge(self) -> None:
        """Tell the connection's holding what this stream makes us keep."""
        kept = 0 if self._closed else self._decoder.buffered_bytes + self._queued_bytes
        self._memory.change(kept - self._charged_bytes)
        self._charged_bytes = kept

    def _check_open(self) -> None:
        if self._ending or self._closed:
            raise StreamClosed(f"the stream to {self.peer} is closed")

    def _put(self, channel: int, data: bytes) -> None:
        self._check_open()
        waiting = self._bulk.get(channel)
        if waiting is not None:
            waiting.append(data)
        elif len(data) >= BULK_BYTES_MIN:
            self._bulk[channel] = deque((data,))
        else:
            self._urgent.append(data)
        self._queued_bytes += len(data)
        self._charge()
        if self._is_writer_parked:
            self._is_writer_parked = False
            self._work.unpark()

    def _take(self) -> bytes:
        """The next write: small frames first, then one turn of bulk if there is room."""
        parts: list[bytes] = []
        size = 0
        while self._urgent and size + len(self._urgent[0]) <= WRITE_BYTES_MAX:
            part = self._urgent.popleft()
            parts.append(part)
            size += len(part)
        if self._bulk and not self._urgent:
            parts.append(self._take_bulk())
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _take_bulk(self) -> bytes:
        channel, waiting = next(iter(self._bulk.items()))
        data = waiting.popleft()
        del self._bulk[channel]
        if waiting:
            self._bulk[channel] = waiting  # At the end of the dictionary: the others are next.
        return data

    def _decoded(self) -> list[Frame]:
        frames = []
        while (frame := self._decoder.next_frame()) is not None:
            frames.append(frame)
        return frames

    async def _fill(self) -> bool:
        """Feed the decoder once; False at the end of the stream."""
        data = await self._receive_in_time() if self._decoder.has_part else await self._receive()
        if data:
            self._decoder.feed(data)
            self._charge()
            return True
        self._decoder.end()
        return False

    async def _receive(self) -> bytes:
        return await self._stream.receive_some()

    async def _receive_in_time(self) -> bytes:
        """More of a frame. Its deadline is its own: bytes that trickle in do not put it off."""
        if self._frames_before != self._decoder.frames_cut:
            self._frames_before = self._decoder.frames_cut
            self._frame_due_at = trio.current_time() + FRAME_WITHIN_S
        with trio.move_on_at(self._frame_due_at):
            return await self._receive()
        raise RemoteProtocolError(
            f"a frame did not arrive whole within {FRAME_WITHIN_S:g} s",
            code=Code.DEADLINE_EXCEEDED,
        )


def _read_hello(frame: Frame) -> Hello:
    if frame.type is FrameType.ERROR and frame.channel == STREAM_CHANNEL:
        raise decode(ErrorBody, frame.body).to_error()
    if frame.type is not FrameType.HELLO or frame.channel != STREAM_CHANNEL:
        raise RemoteProtocolError(
            f"the stream begins with {frame.type.name}, not with HELLO", code=Code.UNEXPECTED_FRAME
        )
    hello = decode(Hello, frame.body)
    if VERSION not in hello.versions:
        raise RemoteProtocolError(
            f"the peer speaks frame versions {list(hello.versions)}, we speak {VERSION}",
            code=Code.UNKNOWN_VERSION,
        )
    return hello
