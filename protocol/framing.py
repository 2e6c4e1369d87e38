"""Frames on a byte stream: a 10-byte header and a msgpack body. No I/O here.

    version u8 | type u8 | channel u32 | length u32   (big-endian), then `length` bytes of body

A stream carries many conversations at once; `channel` says which. The version is in every frame, so
that a peer of another version is told so by the first one that it sends.
"""

import struct
from dataclasses import dataclass
from enum import IntEnum

from protocol.errors import Code, LocalProtocolError, RemoteProtocolError
from protocol.limits import FRAME_BYTES_MAX

VERSION = 1
HEADER = struct.Struct(">BBII")


class FrameType(IntEnum):
    """What a frame's body is. Numbers are the wire's and never change meaning."""

    # Never sent: stands for every number of a later version. The frame around it is whole, so only
    # the conversation that it belongs to cannot go on.
    UNKNOWN = 0
    HELLO = 1
    ERROR = 2
    CLOSE = 3
    REQUEST = 10
    REPLY = 11
    EVENT = 12
    JOB_OPEN = 20
    JOB_DATA = 21
    JOB_ACCEPTED = 22
    JOB_CHUNK = 23
    JOB_RECEIPT = 24
    JOB_ACCEPTANCE = 25
    JOB_CANCEL = 26
    JOB_ERROR = 27
    JOB_PROGRESS = 28
    JOB_COUNTERSIGN = 29


_TYPES = {int(member): member for member in FrameType}

# Frames that begin a channel. On a channel that is over, any other frame may only be late.
OPENING_TYPES = frozenset({FrameType.REQUEST, FrameType.JOB_OPEN})


@dataclass(frozen=True, slots=True)
class Frame:
    """One message of one conversation."""

    type: FrameType
    channel: int
    body: bytes


def encode_frame(frame: Frame) -> bytes:
    """Raises LocalProtocolError if the body is over the limit: the caller should have split it."""
    if len(frame.body) > FRAME_BYTES_MAX:
        raise LocalProtocolError(f"{frame.type.name} of {len(frame.body)} bytes is over the limit")
    return HEADER.pack(VERSION, frame.type, frame.channel, len(frame.body)) + frame.body


class FrameDecoder:
    """Cuts a byte stream into frames. Feed it what arrived, then take frames until None."""

    def __init__(self, *, body_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._buffer = bytearray()
        self._offset = 0
        self._body_bytes_max = body_bytes_max
        # How many frames were cut so far.
        self.frames_cut = 0

    @property
    def buffered_bytes(self) -> int:
        return len(self._buffer)

    @property
    def has_part(self) -> bool:
        """Some bytes of the next frame are here, and not all."""
        return len(self._buffer) > self._offset

    def feed(self, data: bytes) -> None:
        if self._offset:
            del self._buffer[: self._offset]
            self._offset = 0
        self._buffer += data

    def next_frame(self) -> Frame | None:
        """The next whole frame, or None if more bytes are needed.

        Raises RemoteProtocolError: UNKNOWN_VERSION, FRAME_TOO_LARGE. After an error the stream has
        no known boundary any more and must be closed.
        """
        start = self._offset + HEADER.size
        if len(self._buffer) < start:
            return None
        version, number, channel, length = HEADER.unpack_from(self._buffer, self._offset)
        if version != VERSION:
            raise RemoteProtocolError(
                f"the peer speaks frame version {version}, we speak {VERSION}",
                code=Code.UNKNOWN_VERSION,
            )
        frame_type = _TYPES.get(number, FrameType.UNKNOWN)
        if length > self._body_bytes_max:
            raise RemoteProtocolError(
                f"{frame_type.name} announces {length} bytes, the limit is {self._body_bytes_max}",
                code=Code.FRAME_TOO_LARGE,
            )
        end = start + length
        if len(self._buffer) < end:
            return None
        self._offset = end
        self.frames_cut += 1
        return Frame(frame_type, channel, bytes(memoryview(self._buffer)[start:end]))

    def end(self) -> None:
        """The stream ended. Raises RemoteProtocolError (TRUNCATED) in the middle of a frame."""
        if len(self._buffer) > self._offset:
            raise RemoteProtocolError(
                "the stream ended in the middle of a frame", code=Code.TRUNCATED
            )
