"""One conversation on a link: frames in both directions under one number.

What has arrived waits in the channel's buffer; the link (`protocol.net.link`) fills it and bounds
it. Only what happens to one conversation is here.
"""

import math
from collections import deque
from typing import Protocol

import trio
from trio.lowlevel import ParkingLot

from protocol.codec import decode
from protocol.errors import Code, ErrorBody
from protocol.framing import Frame, FrameType
from protocol.ids import PeerId
from protocol.net.deadlines import Deadlines
from protocol.net.errors import Backpressure, NetError, NetTimeout, StreamClosed

# What a waiting frame costs us besides its body; else a flood of empty frames would count nothing.
FRAME_OVERHEAD_BYTES = 128


class _Owner(Protocol):
    """What a channel needs of its link."""

    def send_frame(self, frame: Frame) -> None: ...

    async def wait_send_frame(self, frame: Frame) -> None: ...

    def forget(self, channel: "Channel", error: ErrorBody | None) -> None: ...

    def consumed(self, size: int) -> None: ...


class Channel:
    """One conversation. Any task may send; one task receives."""

    __slots__ = (
        "_arrived",
        "_buffer",
        "_deadlines",
        "_failure",
        "_owner",
        "buffered_bytes",
        "number",
        "peer",
    )

    def __init__(self, number: int, peer: PeerId, owner: _Owner, deadlines: Deadlines) -> None:
        self.number = number
        self.peer = peer
        self.buffered_bytes = 0
        self._owner = owner
        self._deadlines = deadlines
        self._buffer: deque[Frame] = deque()
        self._arrived = ParkingLot()
        self._failure: NetError | None = None

    @property
    def is_closed(self) -> bool:
        """No more can be sent. What has arrived can still be received."""
        return self._failure is not None

    def send_nowait(self, frame_type: FrameType, body: bytes = b"") -> None:
        """Raises Backpressure if too much waits for this peer, StreamClosed if it is over."""
        self._check_open()
        self._owner.send_frame(Frame(frame_type, self.number, body))

    async def send(self, frame_type: FrameType, body: bytes = b"") -> None:
        """Waits for room. Raises StreamClosed."""
        self._check_open()
        await self._owner.wait_send_frame(Frame(frame_type, self.number, body))

    async def receive(self, *, by: float = math.inf) -> Frame:
        """The next frame.

        Raises StreamClosed when the peer closed the channel or the stream is gone, Backpressure
        when we were too slow to receive, RemoteProtocolError with the code of an ERROR frame, and
        NetTimeout when it is `by` on trio's clock, whatever has come.
        """
        if self._buffer:
            await trio.lowlevel.checkpoint()
        while trio.current_time() < by:
            if self._buffer:
                return self._pop()
            await trio.lowlevel.checkpoint_if_cancelled()
            self._check_open()
            self._deadlines.add(self, by)
            try:
                await self._arrived.park()
            finally:
                self._deadlines.remove(self)
        raise NetTimeout(f"{self.peer} was not heard in time")

    def receive_nowait(self) -> Frame:
        """As `receive`, but raises trio.WouldBlock when nothing has arrived."""
        if not self._buffer:
            self._check_open()
            raise trio.WouldBlock
        return self._pop()

    def close(self, error: ErrorBody | None = None) -> None:
        """End the conversation, telling the peer why if it failed. What it sent and still sends is
        dropped. Closing twice does nothing."""
        if self._failure is None:
            self._owner.forget(self, error)
            self.fail(StreamClosed("the channel was closed here"))
        self._discard()

    def deliver(self, frame: Frame, size: int) -> None:
        """For the link: a frame has arrived."""
        self._buffer.append(frame)
        self.buffered_bytes += size
        self._arrived.unpark()

    def wake(self) -> None:
        """For the deadlines: one may be over."""
        self._arrived.unpark_all()

    def fail(self, failure: NetError) -> None:
        """For the link: nothing more will arrive, because of `failure`."""
        self._failure = failure
        self._arrived.unpark_all()

    def overflow(self) -> None:
        """For the link: what has arrived is too much to keep."""
        self._owner.forget(self, ErrorBody(Code.BUSY, "the receiver is too slow"))
        self.fail(Backpressure("more arrived than was received in time"))
        self._discard()

    def _check_open(self) -> None:
        if self._failure is not None:
            # A fresh error for every caller: an exception that is raised twice mixes tracebacks.
            raise type(self._failure)(*self._failure.args)

    def _discard(self) -> None:
        self._owner.consumed(self.buffered_bytes)
        self._buffer.clear()
        self.buffered_bytes = 0

    def _pop(self) -> Frame:
        frame = self._buffer.popleft()
        size = len(frame.body) + FRAME_OVERHEAD_BYTES
        self.buffered_bytes -= size
        self._owner.consumed(size)
        if frame.type is FrameType.ERROR:
            raise decode(ErrorBody, frame.body).to_error()
        return frame
