"""Frames between the node and its worker, over one socket.

A frame is two big-endian u32 (bytes of header, bytes of blob), the header as a msgpack array, and
the blob raw, so that images and vectors are not copied through msgpack. What they say is in
`commands` (node to worker) and `reports` (worker to node).
"""

import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Any

import msgpack

from protocol.errors import CapaError
from protocol.limits import MIB, OUTPUT_BYTES_MAX, PAYLOAD_BYTES_MAX

# One step's events: 256 jobs of 4 KiB each, far more than a step ever says.
HEADER_BYTES_MAX = MIB
# Several jobs may end in one step with a whole output each; `encode_events` splits above this.
BLOB_BYTES_MAX = 16 * MIB
assert max(PAYLOAD_BYTES_MAX, OUTPUT_BYTES_MAX) <= BLOB_BYTES_MAX

# The longest list in a header: one event's tokens, or one step's events.
ITEMS_MAX = 4_096
JOB_ID_CHARS_MAX = 64

_PREFIX = struct.Struct(">II")


class Kind(IntEnum):
    """The first item of every header. Below 16: node to worker; above: worker to node."""

    START = 1
    CANCEL = 2
    PING = 3
    SHUTDOWN = 4
    READY = 16
    EVENTS = 17
    PONG = 18
    LOAD_FAILED = 19
    CANCELLED = 20
    DEVICE_FAILED = 21


class WorkerProtocolError(CapaError):
    """The worker sent what no worker of ours would send: it is broken, or taken over."""


class FrameBuffer:
    """Cuts a byte stream into frames of (header, blob), keeping an unfinished one for later."""

    def __init__(self) -> None:
        self._pending = bytearray()
        self._wanted_bytes = 0

    def feed(self, data: bytes) -> list[tuple[Any, memoryview]]:
        """The frames that `data` completes. Raises WorkerProtocolError."""
        if self._pending:
            self._pending += data
            if len(self._pending) < self._wanted_bytes:
                return []
            data = bytes(self._pending)
            self._pending.clear()
        frames = []
        view = memoryview(data)
        at = 0
        while len(view) - at >= _PREFIX.size:
            header_bytes, blob_bytes = _PREFIX.unpack_from(view, at)
            if header_bytes > HEADER_BYTES_MAX or blob_bytes > BLOB_BYTES_MAX:
                raise WorkerProtocolError("a frame is larger than any frame may be")
            blob_at = at + _PREFIX.size + header_bytes
            end = blob_at + blob_bytes
            if end > len(view):
                self._wanted_bytes = end - at
                break
            frames.append((_unpack(view[at + _PREFIX.size : blob_at]), view[blob_at:end]))
            at = end
        else:
            self._wanted_bytes = _PREFIX.size
        self._pending += view[at:]
        return frames


def make_frame(header: Iterable[object], blob: bytes = b"") -> bytes:
    """`header` starts with its kind."""
    packed: bytes = msgpack.packb(header, use_bin_type=True)
    return _PREFIX.pack(len(packed), len(blob)) + packed + blob


def _unpack(header: memoryview) -> Any:
    try:
        # A list is at most one step's events, or one event's tokens; no report holds a map.
        return msgpack.unpackb(
            header, raw=False, max_ext_len=0, max_map_len=0, max_array_len=ITEMS_MAX
        )
    except (ValueError, msgpack.UnpackException, RecursionError):
        raise WorkerProtocolError("a header is not msgpack") from None
