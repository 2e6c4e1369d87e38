"""Yamux frames as they arrive: headers are judged, bodies go to their streams piece by piece.

So half a frame holds no more memory than the bytes that came, and a frame has a deadline.
"""

import math
from typing import Protocol

import trio

from protocol.net.libp2p_yamux_queue import VERSION
from protocol.net.libp2p_yamux_stream import (
    DATA,
    GO_AWAY,
    HEADER,
    PING,
    SYN,
    WINDOW_BYTES_MAX,
    MuxStream,
    ProtocolViolation,
)
from protocol.net.pace import FRAME_COST, STREAM_COST, WorkPace

# A frame of the largest window, over a slow line. A peer that takes longer holds up every other
# stream of its connection.
MUX_FRAME_WITHIN_S = 60.0


class _Receiver(Protocol):
    """What the reader needs of its connection."""

    def stream_for(self, flags: int, stream_id: int) -> MuxStream | None: ...

    def on_control(self, kind: int, flags: int, stream_id: int, length: int) -> None: ...

    def note_used(self) -> None: ...


class MuxReader:
    """Cuts the bytes of one connection into frames. `due_at` is trio's time by which the frame
    that has arrived in part must be whole; infinite between frames."""

    def __init__(self, receiver: _Receiver, pace: WorkPace) -> None:
        self.due_at = math.inf
        self._receiver = receiver
        self._pace = pace
        self._buffer = bytearray()
        # The frame of data that is under way: its stream, flags and rest.
        self._body: tuple[MuxStream | None, int] = (None, 0)
        self._body_left = 0

    def feed(self, data: bytes) -> None:
        """Handle what has arrived. Raises ProtocolViolation, and what the receiver raises."""
        self._buffer += data
        taken = self._read_frames()
        del self._buffer[:taken]
        if not self._body_left:
            self.due_at = math.inf

    def _read_frames(self) -> int:
        """Returns how many bytes were handled."""
        position = 0
        with memoryview(self._buffer) as view:
            while True:
                if self._body_left:
                    end = min(position + self._body_left, len(view))
                    with view[position:end] as piece:
                        self._on_body(piece)
                    position = end
                if self._body_left or len(view) - position < HEADER.size:
                    return position
                header = HEADER.unpack_from(view, position)
                position += HEADER.size
                self._on_header(*header)

    def _on_header(self, version: int, kind: int, flags: int, stream_id: int, length: int) -> None:
        if version != VERSION or kind > GO_AWAY:
            raise ProtocolViolation(f"frame of version {version}, type {kind}")
        if flags & SYN and kind < PING:
            self._pace.spend(STREAM_COST)
        elif kind != DATA or not length:
            self._pace.spend(FRAME_COST)
        if kind != DATA:
            self._receiver.on_control(kind, flags, stream_id, length)
            return
        if length > WINDOW_BYTES_MAX:
            raise ProtocolViolation(f"{length} bytes in one frame")
        stream = self._receiver.stream_for(flags, stream_id)
        if stream is not None:
            stream.on_announced(length)
        self._body, self._body_left = (stream, flags), length
        self.due_at = trio.current_time() + MUX_FRAME_WITHIN_S
        if not length:
            self._on_body(memoryview(b""))

    def _on_body(self, piece: memoryview) -> None:
        """The next bytes of the frame that is under way; its flags count when it is whole."""
        stream, flags = self._body
        self._body_left -= len(piece)
        if stream is None:
            return
        self._receiver.note_used()
        stream.on_data(piece)
        if not self._body_left:
            stream.on_flags(flags)
