"""One Yamux stream: its two halves, its windows, and what it says to its connection.

The connection itself is in `libp2p_yamux`, which also tells what is different from the library's.
"""

import struct
from typing import Protocol

import trio
from libp2p.abc import IMuxedConn, IMuxedStream
from libp2p.stream_muxer.exceptions import (
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)
from trio.lowlevel import ParkingLot

from protocol.net.buffers import Holding

HEADER = struct.Struct("!BBHII")  # version, type, flags, stream, length

DATA, WINDOW_UPDATE, PING, GO_AWAY = range(4)
SYN, ACK, FIN, RST = 1, 2, 4, 8

# The specification's first window; both sides assume it.
WINDOW_BYTES = 256 * 1024
# A stream whose reader keeps up may have this much under way: 80 MB/s at 50 ms. Only such a stream
# gets it, because what is under way is memory that the peer makes us hold.
WINDOW_BYTES_MAX = 4 * 1024 * 1024

# A window is 32 bits on the wire.
CREDIT_MAX = 2**32 - 1

# One Noise message; a frame of data fits into one together with its header.
WRITE_BYTES_MAX = 65_519
DATA_BYTES_MAX = WRITE_BYTES_MAX - HEADER.size


class ProtocolViolation(Exception):
    """The peer breaks the rules of Yamux: the connection ends."""


class Connection(Protocol):
    """What a stream needs of its connection."""

    @property
    def memory(self) -> Holding: ...

    @property
    def is_congested(self) -> bool: ...

    async def wait_uncongested(self) -> None: ...

    def send(
        self, kind: int, flags: int, stream_id: int, length: int, data: memoryview | bytes = b""
    ) -> None: ...

    def forget(self, stream: "MuxStream") -> None: ...

    def get_remote_address(self) -> tuple[str, int] | None: ...


class MuxStream(IMuxedStream):
    """One stream. One task may read while another writes."""

    def __init__(self, stream_id: int, mux: "Connection", *, is_inbound: bool) -> None:
        self.stream_id = stream_id
        self.is_inbound = is_inbound
        self.mux = mux
        self._buffer = bytearray()
        self._send_credit = WINDOW_BYTES
        self._window = WINDOW_BYTES
        # What the peer may still send, and what we have read but not yet given back as credit.
        self._receive_credit = WINDOW_BYTES
        self._consumed = 0
        self._arrived = ParkingLot()
        self._room = ParkingLot()
        self.eof_sent = False
        self.eof_received = False
        self.discards = False
        self._failure: Exception | None = None

    @property
    def is_closed(self) -> bool:
        return self._failure is not None or (self.eof_sent and self.eof_received)

    async def read(self, n: int | None = None) -> bytes:
        """Up to `n` bytes. Raises MuxedStreamEOF, MuxedStreamReset, MuxedStreamClosed."""
        if self._buffer:
            await trio.lowlevel.checkpoint()
        while not self._buffer:
            await trio.lowlevel.checkpoint_if_cancelled()
            if self._failure is not None and not self.eof_received:
                raise self._fresh_failure()
            if self.eof_received or self.discards:
                raise MuxedStreamEOF
            await self._arrived.park()
        if n is None or n < 0 or n >= len(self._buffer):
            data = bytes(self._buffer)
            self._buffer.clear()
        else:
            data = bytes(self._buffer[:n])
            del self._buffer[:n]
        self.mux.memory.change(-len(data))
        self._give_credit(len(data))
        return data

    async def write(self, data: bytes) -> None:
        """Returns when all is queued for the socket. Raises MuxedStreamReset, MuxedStreamClosed."""
        await trio.lowlevel.checkpoint_if_cancelled()
        rest = memoryview(data)
        while rest:
            if self._failure is not None:
                raise self._fresh_failure()
            if self.eof_sent:
                raise MuxedStreamClosed
            if not self._send_credit:
                await self._room.park()
                continue
            if self.mux.is_congested:
                await self.mux.wait_uncongested()
                continue
            piece = rest[: min(self._send_credit, DATA_BYTES_MAX)]
            rest = rest[len(piece) :]
            self._send_credit -= len(piece)
            self.mux.send(DATA, 0, self.stream_id, len(piece), piece)
        # Only now, so that the frame is on its way while others have their turn.
        await trio.lowlevel.cancel_shielded_checkpoint()

    def write_nowait(self, data: bytes) -> bool:
        """Queue all of it in one frame, or none of it if there is no room or no stream any more."""
        is_over = self._failure is not None or self.eof_sent
        if is_over or self.mux.is_congested or len(data) > min(self._send_credit, DATA_BYTES_MAX):
            return False
        self._send_credit -= len(data)
        self.mux.send(DATA, 0, self.stream_id, len(data), data)
        return True

    async def close(self) -> None:
        """End our side; the peer's side goes on."""
        await trio.lowlevel.checkpoint()
        if self._failure is None and not self.eof_sent:
            self.eof_sent = True
            self.mux.send(WINDOW_UPDATE, FIN, self.stream_id, 0)
            self._settle()
        self._room.unpark_all()

    async def close_both(self) -> None:
        """End our side and read no more: what the peer still sends is answered with a reset."""
        await self.close()
        self.discards = True
        self._discard()
        self._arrived.unpark_all()

    async def reset(self) -> None:
        await trio.lowlevel.checkpoint()
        if not self.is_closed and not self.discards:
            self.mux.send(WINDOW_UPDATE, RST, self.stream_id, 0)
            self._discard()
            self.fail(MuxedStreamReset("the stream was reset here"))

    @property
    def muxed_conn(self) -> IMuxedConn:  # type: ignore[override]  # the library has an attribute
        assert isinstance(self.mux, IMuxedConn)
        return self.mux

    def set_deadline(self, ttl: int) -> None:
        raise NotImplementedError("deadlines are trio's cancel scopes")

    def get_remote_address(self) -> tuple[str, int] | None:
        return self.mux.get_remote_address()

    async def __aenter__(self) -> "MuxStream":
        return self

    # What the peer does, as its frames arrive.

    def on_announced(self, size: int) -> None:
        """A frame of data begins: the peer may send so much, or it breaks the rules."""
        self._receive_credit -= size
        if self._receive_credit < 0:
            raise ProtocolViolation(f"stream {self.stream_id} exceeds its window")

    def on_data(self, data: memoryview) -> None:
        if self.discards and data and self._failure is None:
            self.mux.send(WINDOW_UPDATE, RST, self.stream_id, 0)
            self.fail(MuxedStreamReset("the peer sent to a closed stream"))
        elif self._failure is None and not self.eof_received:
            self._buffer += data
            self.mux.memory.change(len(data))
            self._arrived.unpark()

    def on_credit(self, size: int) -> None:
        self._send_credit += size
        if self._send_credit > CREDIT_MAX:
            raise ProtocolViolation(f"stream {self.stream_id} got more credit than there can be")
        self._room.unpark_all()

    def on_flags(self, flags: int) -> None:
        if flags & RST:
            self._discard()
            self.eof_received = False
            self.fail(MuxedStreamReset("the peer reset the stream"))
        elif flags & FIN:
            self.eof_received = True
            self._arrived.unpark_all()
            self._settle()

    def fail(self, failure: Exception) -> None:
        if self._failure is None:
            self._failure = failure
        self._arrived.unpark_all()
        self._room.unpark_all()
        self._settle()

    def _discard(self) -> None:
        self.mux.memory.change(-len(self._buffer))
        self._buffer.clear()

    def _give_credit(self, size: int) -> None:
        """Let the peer send again what we have taken, once it is worth a frame."""
        self._consumed += size
        if self._consumed < self._window // 2 or self.eof_received or self._failure is not None:
            return
        credit = self._consumed
        if not self._buffer and self._window < WINDOW_BYTES_MAX:
            # The reader waits for the network, not the other way round: allow more under way.
            credit += self._window
            self._window *= 2
        self._consumed = 0
        self._receive_credit += credit
        self.mux.send(WINDOW_UPDATE, 0, self.stream_id, credit)

    def _settle(self) -> None:
        if self.is_closed:
            self.mux.forget(self)

    def _fresh_failure(self) -> Exception:
        assert self._failure is not None
        return type(self._failure)(*self._failure.args)
