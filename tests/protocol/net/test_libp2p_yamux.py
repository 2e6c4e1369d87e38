"""Yamux over a pair of queues: what the wire carries, and what a hostile peer may not do."""

import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from libp2p.connection_types import ConnectionType
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import (
    MuxedConnUnavailable,
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)
from trio.testing import wait_all_tasks_blocked

from protocol.limits import KIB, MIB
from protocol.net.buffers import Buffers
from protocol.net.libp2p_yamux import (
    PING_AFTER_S,
    PONG_WITHIN_S,
    STREAM_COST_BYTES,
    STREAMS_ACCEPTED_MAX,
    Mux,
)
from protocol.net.libp2p_yamux_queue import QUEUE_BYTES_MAX
from protocol.net.libp2p_yamux_reader import MUX_FRAME_WITHIN_S
from protocol.net.libp2p_yamux_stream import (
    ACK,
    DATA,
    FIN,
    GO_AWAY,
    HEADER,
    PING,
    RST,
    SYN,
    WINDOW_BYTES,
    WINDOW_BYTES_MAX,
    WINDOW_UPDATE,
    WRITE_BYTES_MAX,
    MuxStream,
)
from protocol.net.pace import FRAME_COST, STREAM_COST, WORK
from tests.protocol.net.contract import key_of
from tests.protocol.net.virtual import virtual_time

PEER = ID.from_base58(key_of(3).peer_id)


class QueueConn:
    """A secured connection whose messages go to the other one's queue."""

    def __init__(self, *, is_initiator: bool) -> None:
        self.is_initiator = is_initiator
        self.send, self.receive = trio.open_memory_channel[bytes](10_000)
        self.other: QueueConn = self
        self.stuck = trio.Event()
        self.stuck.set()
        self.written: list[bytes] = []

    async def read(self, n: int | None = None) -> bytes:
        try:
            return await self.receive.receive()
        except trio.EndOfChannel:
            raise ConnectionClosedError("the other side is gone") from None

    async def write(self, data: bytes) -> None:
        await self.stuck.wait()
        self.written.append(data)
        try:
            await self.other.send.send(data)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            raise ConnectionClosedError("the other side is gone") from None

    async def close(self) -> None:
        self.other.send.close()

    def get_remote_address(self) -> tuple[str, int] | None:
        return None

    def get_connection_type(self) -> ConnectionType:
        return ConnectionType.DIRECT


def queue_pair() -> tuple[QueueConn, QueueConn]:
    left, right = QueueConn(is_initiator=True), QueueConn(is_initiator=False)
    left.other, right.other = right, left
    return left, right


def mux_on(conn: QueueConn, buffers: Buffers | None = None) -> Mux:
    return Mux(cast(Any, conn), PEER, buffers if buffers is not None else Buffers())


@asynccontextmanager
async def muxed() -> AsyncIterator[tuple[Mux, Mux, QueueConn, QueueConn]]:
    left, right = queue_pair()
    ours, theirs = mux_on(left), mux_on(right)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.start)
        nursery.start_soon(theirs.start)
        yield ours, theirs, left, right
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def against_raw() -> AsyncIterator[tuple[Mux, QueueConn]]:
    """A Mux that accepts, and the other side's bare connection."""
    left, right = queue_pair()
    mux = mux_on(left)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)
        yield mux, right
        nursery.cancel_scope.cancel()


def frame(kind: int, flags: int, stream_id: int, length: int = 0, body: bytes = b"") -> bytes:
    return HEADER.pack(0, kind, flags, stream_id, length or len(body)) + body


async def frames_from(conn: QueueConn) -> list[tuple[int, int, int, int]]:
    """What the Mux has sent so far: type, flags, stream and length of each frame."""
    await wait_all_tasks_blocked()
    data = b""
    while True:
        try:
            data += conn.receive.receive_nowait()
        except (trio.WouldBlock, trio.EndOfChannel):
            break
    frames = []
    while data:
        _, kind, flags, stream_id, length = HEADER.unpack_from(data)
        frames.append((kind, flags, stream_id, length))
        data = data[HEADER.size + (length if kind == DATA else 0) :]
    return frames


async def read_exactly(stream: MuxStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await stream.read(size - len(data))
    return data


@virtual_time
async def test_frames_are_yamux() -> None:
    async with against_raw() as (mux, raw):
        stream = await mux.open_stream()
        await stream.write(b"hello")
        await stream.close()
        assert await frames_from(raw) == [
            (WINDOW_UPDATE, SYN, 1, 0),
            (DATA, 0, 1, 5),
            (WINDOW_UPDATE, FIN, 1, 0),
        ]


@virtual_time
async def test_what_waits_together_is_written_together() -> None:
    async with against_raw() as (mux, raw):
        ours = raw.other
        streams = [await mux.open_stream() for _ in range(3)]
        await wait_all_tasks_blocked()
        before = len(ours.written)
        for stream in streams:
            await stream.write(b"x" * 100)
        await wait_all_tasks_blocked()
        writes = ours.written[before:]
        assert len(writes) < 3 or sum(map(len, writes)) == 3 * (HEADER.size + 100)
        assert all(len(write) <= WRITE_BYTES_MAX for write in writes)


@virtual_time
async def test_data_goes_both_ways_and_ends() -> None:
    async with muxed() as (ours, theirs, _, _):
        mine = await ours.open_stream()
        await mine.write(b"question")
        yours = await theirs.accept_stream()
        assert await read_exactly(yours, 8) == b"question"
        await mine.close()
        with pytest.raises(MuxedStreamEOF):
            await yours.read()
        await yours.write(b"answer")
        await yours.close()
        assert await read_exactly(mine, 6) == b"answer"
        with pytest.raises(MuxedStreamEOF):
            await mine.read()
        await wait_all_tasks_blocked()
        assert not ours.streams
        assert not theirs.streams


@virtual_time
async def test_cancelled_writer_spoils_nothing() -> None:
    async with muxed() as (ours, theirs, left, _):
        mine = await ours.open_stream()
        other = await ours.open_stream()
        yours = await theirs.accept_stream()
        their_other = await theirs.accept_stream()
        left.stuck = trio.Event()
        with trio.move_on_after(1) as scope:
            await mine.write(b"x" * (QUEUE_BYTES_MAX + WINDOW_BYTES))
        assert scope.cancelled_caught
        left.stuck.set()
        await other.write(b"fine")
        assert await read_exactly(their_other, 4) == b"fine"
        assert set(await yours.read()) == {ord("x")}


@virtual_time
async def test_writer_waits_for_the_window_as_long_as_it_takes() -> None:
    async with muxed() as (ours, theirs, _, _):
        mine = await ours.open_stream()
        size = 3 * WINDOW_BYTES
        async with trio.open_nursery() as nursery:
            nursery.start_soon(mine.write, b"x" * size)
            yours = await theirs.accept_stream()
            await trio.sleep(3600)
            assert await read_exactly(yours, size) == b"x" * size


@virtual_time
async def test_small_reads_return_no_credit_each() -> None:
    async with against_raw() as (mux, raw):
        await raw.write(frame(WINDOW_UPDATE, SYN, 2))
        stream = await mux.accept_stream()
        for _ in range(100):
            await raw.write(frame(DATA, 0, 2, body=b"x" * 100))
            assert await stream.read() == b"x" * 100
        assert await frames_from(raw) == [(WINDOW_UPDATE, ACK, 2, 0)]


@virtual_time
async def test_window_grows_for_a_reader_that_keeps_up() -> None:
    async with against_raw() as (mux, raw):
        await raw.write(frame(WINDOW_UPDATE, SYN, 2))
        stream = await mux.accept_stream()
        credit = WINDOW_BYTES
        for _ in range(200):
            body = b"x" * 32_768
            credit -= len(body)
            await raw.write(frame(DATA, 0, 2, body=body))
            assert await read_exactly(stream, len(body)) == body
            credit += sum(f[3] for f in await frames_from(raw) if f[0] == WINDOW_UPDATE)
        assert credit > 2_000_000


@virtual_time
async def test_pings_are_answered_and_measured() -> None:
    async with muxed() as (ours, _, _, _):
        assert await ours.ping() >= 0
    async with against_raw() as (_, raw):
        await raw.write(frame(PING, SYN, 0, 77))
        assert await frames_from(raw) == [(PING, ACK, 0, 77)]


@virtual_time
async def test_silent_peer_is_given_up() -> None:
    async with against_raw() as (mux, _):
        stream = await mux.open_stream()
        started_at = trio.current_time()
        with pytest.raises(MuxedStreamClosed, match="silent"):
            await stream.read()
        assert trio.current_time() - started_at <= PING_AFTER_S + PONG_WITHIN_S + 0.1
        assert mux.timed_out
        assert mux.is_closed


@virtual_time
async def test_any_byte_is_a_sign_of_life() -> None:
    async with against_raw() as (mux, raw):
        await raw.write(frame(WINDOW_UPDATE, SYN, 2))
        stream = await mux.accept_stream()
        for _ in range(30):
            await trio.sleep(PONG_WITHIN_S * 0.9)
            await raw.write(frame(DATA, 0, 2, body=b"x"))
            await stream.read()
        assert not mux.is_closed


@virtual_time
async def test_idle_connection_stays_open() -> None:
    async with muxed() as (ours, theirs, _, _):
        await trio.sleep(3600)
        assert ours.is_established
        assert theirs.is_established


@virtual_time
async def test_closing_does_not_hang_on_a_peer_that_reads_nothing() -> None:
    async with muxed() as (ours, _, left, _):
        left.stuck = trio.Event()
        stream = await ours.open_stream()
        await stream.write(b"x" * 1000)
        with trio.fail_after(1):
            await ours.close()
        assert ours.is_closed
        with pytest.raises(MuxedStreamClosed):
            await stream.read()


@virtual_time
async def test_end_of_the_connection_ends_everything() -> None:
    async with muxed() as (ours, theirs, _, _):
        told: list[str] = []

        async def tell() -> None:
            told.append("closed")

        theirs.on_close = tell
        mine = await ours.open_stream()
        await mine.write(b"arrived")
        yours = await theirs.accept_stream()
        await ours.close()
        await ours.close()
        await theirs.event_closed.wait()
        await wait_all_tasks_blocked()
        assert told == ["closed"]
        assert await yours.read() == b"arrived"
        with pytest.raises(MuxedStreamClosed):
            await yours.read()
        for mux in (ours, theirs):
            with pytest.raises(MuxedConnUnavailable):
                await mux.open_stream()
            with pytest.raises(MuxedConnUnavailable):
                await mux.accept_stream()
            with pytest.raises(MuxedConnUnavailable):
                await mux.ping()


@virtual_time
async def test_reset_is_told_apart_from_the_end() -> None:
    async with muxed() as (ours, theirs, _, _):
        mine = await ours.open_stream()
        yours = await theirs.accept_stream()
        await yours.write(b"lost with the reset")
        await yours.reset()
        await wait_all_tasks_blocked()
        with pytest.raises(MuxedStreamReset):
            await mine.read()
        with pytest.raises(MuxedStreamReset):
            await mine.write(b"x")


@virtual_time
async def test_data_for_a_closed_stream_is_answered_with_a_reset() -> None:
    async with muxed() as (ours, theirs, _, _):
        mine = await ours.open_stream()
        yours = await theirs.accept_stream()
        await mine.close_both()
        with pytest.raises(MuxedStreamEOF):
            await yours.read()
        await yours.write(b"anybody there?")
        await wait_all_tasks_blocked()
        with pytest.raises(MuxedStreamReset):
            await yours.write(b"x")


@virtual_time
async def test_late_frames_are_ignored() -> None:
    async with against_raw() as (mux, raw):
        for kind, flags in ((DATA, 0), (WINDOW_UPDATE, 0), (WINDOW_UPDATE, FIN), (DATA, RST)):
            await raw.write(frame(kind, flags, 99, body=b""))
        await wait_all_tasks_blocked()
        assert mux.is_established


@virtual_time
async def test_frames_may_be_cut_anywhere() -> None:
    async with against_raw() as (mux, raw):
        wire = frame(WINDOW_UPDATE, SYN, 2) + frame(DATA, FIN, 2, body=b"hello")
        for byte in wire:
            await raw.write(bytes([byte]))
        stream = await mux.accept_stream()
        assert await read_exactly(stream, 5) == b"hello"
        with pytest.raises(MuxedStreamEOF):
            await stream.read()


@pytest.mark.parametrize(
    "wire",
    [
        struct.pack("!BBHII", 1, DATA, 0, 1, 0),
        struct.pack("!BBHII", 0, 9, 0, 1, 0),
        frame(WINDOW_UPDATE, SYN, 1),
        frame(WINDOW_UPDATE, SYN, 4) + frame(WINDOW_UPDATE, SYN, 2),
        frame(DATA, SYN, 2, length=2**31),
        frame(DATA, SYN, 2, body=b"x" * WINDOW_BYTES) + frame(DATA, 0, 2, body=b"x"),
    ],
    ids=["version", "type", "our own number", "backwards", "huge frame", "over the window"],
)
@virtual_time
async def test_broken_rules_end_the_connection(wire: bytes) -> None:
    async with against_raw() as (mux, raw):
        await raw.write(wire)
        with trio.fail_after(5):
            await mux.event_closed.wait()
        assert (GO_AWAY, 0, 0, 1) in await frames_from(raw)


@virtual_time
async def test_streams_that_nobody_accepts_are_bounded() -> None:
    async with against_raw() as (mux, raw):
        for n in range(STREAMS_ACCEPTED_MAX + 5):
            await raw.write(frame(WINDOW_UPDATE, SYN, 2 * n + 2))
        answers = await frames_from(raw)
        assert sum(flags == ACK for _, flags, _, _ in answers) == STREAMS_ACCEPTED_MAX
        assert sum(flags == RST for _, flags, _, _ in answers) == 5
        assert len(mux.streams) == STREAMS_ACCEPTED_MAX


@virtual_time
async def test_streams_that_are_accepted_and_never_closed_are_bounded() -> None:
    async with against_raw() as (mux, raw):
        for n in range(STREAMS_ACCEPTED_MAX + 5):
            await raw.write(frame(WINDOW_UPDATE, SYN, 2 * n + 2))
            if n < STREAMS_ACCEPTED_MAX:
                await mux.accept_stream()
        assert len(mux.streams) == STREAMS_ACCEPTED_MAX


@virtual_time
async def test_flood_of_pings_without_reading_ends_the_connection() -> None:
    left, right = queue_pair()
    mux = mux_on(left)
    left.stuck = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)
        for _ in range(40):
            await right.write(frame(PING, SYN, 0, 1) * 5000)
        # Not at once: frames without data are read at a bounded pace.
        with trio.fail_after(60):
            await mux.event_closed.wait()
        assert not mux.timed_out
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("kind", "flags", "cost"),
    [(PING, SYN, FRAME_COST), (WINDOW_UPDATE, RST, FRAME_COST), (WINDOW_UPDATE, SYN, STREAM_COST)],
    ids=["pings", "resets", "streams"],
)
@virtual_time
async def test_frames_without_data_are_read_at_a_bounded_pace(
    kind: int, flags: int, cost: int
) -> None:
    left, right = queue_pair()
    mux = mux_on(left)
    at_once = 32
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)
        for start in range(0, 4 * WORK.burst // cost, at_once):
            numbers = range(start, start + at_once)
            frames = [frame(kind, flags, 0 if kind == PING else 2 * n + 2, 1) for n in numbers]
            await right.write(b"".join(frames))
        await trio.sleep(1)
        assert left.receive.statistics().current_buffer_used > 0
        await trio.sleep(4 * WORK.burst / WORK.per_s)
        assert left.receive.statistics().current_buffer_used == 0
        nursery.cancel_scope.cancel()


# What a peer can make us hold.


@virtual_time
async def test_half_a_frame_for_no_stream_holds_nothing() -> None:
    buffers = Buffers()
    left, right = queue_pair()
    mux = mux_on(left, buffers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)
        await right.write(HEADER.pack(0, DATA, 0, 999, WINDOW_BYTES_MAX))
        for _ in range(60):
            await right.write(bytes(60 * KIB))
        await wait_all_tasks_blocked()
        assert buffers.held_bytes == 0
        nursery.cancel_scope.cancel()


@virtual_time
async def test_a_frame_that_trickles_in_ends_the_connection() -> None:
    async with against_raw() as (mux, raw):
        await raw.write(HEADER.pack(0, DATA, 0, 999, WINDOW_BYTES_MAX))
        with trio.move_on_after(2 * MUX_FRAME_WITHIN_S):
            while not mux.is_closed:
                await trio.sleep(2)
                await raw.write(b"x")
        assert mux.is_closed
        assert not mux.timed_out


@virtual_time
async def test_the_window_is_judged_by_a_frames_header() -> None:
    async with against_raw() as (mux, raw):
        await raw.write(frame(DATA, SYN, 2, length=WINDOW_BYTES + 1))
        with trio.fail_after(1):
            await mux.event_closed.wait()


@virtual_time
async def test_more_credit_than_a_window_can_have_ends_the_connection() -> None:
    async with against_raw() as (mux, raw):
        await raw.write(frame(WINDOW_UPDATE, SYN, 2) + frame(WINDOW_UPDATE, 0, 2, 2**32 - 1))
        with trio.fail_after(1):
            await mux.event_closed.wait()


@virtual_time
async def test_bytes_and_streams_are_charged_until_they_are_read_and_closed() -> None:
    buffers = Buffers()
    left, right = queue_pair()
    mux = mux_on(left, buffers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)
        await right.write(frame(DATA, SYN, 2, body=bytes(200 * KIB)))
        stream = await mux.accept_stream()
        assert mux.memory.held_bytes == 200 * KIB + STREAM_COST_BYTES
        assert len(await stream.read()) == 200 * KIB
        assert mux.memory.held_bytes == STREAM_COST_BYTES
        await right.write(frame(DATA, 0, 2, body=bytes(1000)))
        await wait_all_tasks_blocked()
        await stream.reset()
        assert mux.memory.held_bytes == 0
        nursery.cancel_scope.cancel()


@virtual_time
async def test_unread_streams_of_a_flood_end_its_connection_and_no_other() -> None:
    buffers = Buffers(bytes_max=4 * MIB)
    (left, right), (calm, calm_peer) = queue_pair(), queue_pair()
    mux, honest = mux_on(left, buffers), mux_on(calm, buffers)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mux.start)
        nursery.start_soon(honest.start)
        await calm_peer.write(frame(DATA, SYN, 2, body=bytes(100 * KIB)))
        for n in range(20):
            await right.write(frame(DATA, SYN, 2 * n + 2, body=bytes(WINDOW_BYTES)))
        with trio.fail_after(1):
            await mux.event_closed.wait()
        assert honest.is_established
        assert buffers.held_bytes <= 4 * MIB
        nursery.cancel_scope.cancel()
