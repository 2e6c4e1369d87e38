import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from protocol.codec import decode, encode
from protocol.errors import Code, ErrorBody, LocalProtocolError, RemoteProtocolError
from protocol.framing import HEADER, Frame, FrameType, encode_frame
from protocol.limits import FRAME_BYTES_MAX, KIB
from protocol.net.buffers import Buffers
from protocol.net.errors import Backpressure, NetTimeout, StreamClosed
from protocol.net.frames import (
    BULK_BYTES_MIN,
    FRAME_WITHIN_S,
    WRITE_BYTES_MAX,
    FramedStream,
    Hello,
)
from protocol.net.transport import RECEIVE_BYTES_MAX, Origin, Stream
from tests.protocol.net.contract import key_of
from tests.protocol.net.pairs import Pair
from tests.protocol.net.virtual import virtual_time


class RecordingStream:
    """Takes writes one by one, when it is told to; reads what it is given, in given pieces."""

    def __init__(self, pieces: list[bytes] | None = None) -> None:
        self.peer = key_of(9).peer_id
        self.origin = Origin("test")
        self.is_superseded = False
        self.memory = Buffers().open("test", lambda: None)
        self.writes: list[bytes] = []
        self.gate = trio.Event()
        self.gate.set()
        self._pieces = list(pieces or [])

    async def send_all(self, data: bytes) -> None:
        await self.gate.wait()
        self.writes.append(data)

    def send_nowait(self, data: bytes) -> bool:
        return False

    async def receive_some(self, max_bytes: int = RECEIVE_BYTES_MAX) -> bytes:
        await trio.lowlevel.checkpoint()
        return self._pieces.pop(0) if self._pieces else b""

    async def send_eof(self) -> None: ...

    async def aclose(self) -> None: ...

    async def reset(self) -> None: ...


def chunk(channel: int, body: bytes = b"token") -> Frame:
    return Frame(FrameType.JOB_CHUNK, channel, body)


async def written(stream: RecordingStream, framed: FramedStream) -> bytes:
    """Everything that the writer sends until it has nothing more."""
    framed.end()
    await framed.run_writer()
    return b"".join(stream.writes)


async def test_frames_queued_together_leave_in_one_write() -> None:
    stream = RecordingStream()
    framed = FramedStream(stream)
    frames = [chunk(n) for n in range(1, 33)]
    for frame in frames:
        framed.send_nowait(frame)
    assert await written(stream, framed) == b"".join(map(encode_frame, frames))
    assert len(stream.writes) == 1


async def test_frames_gather_while_a_write_is_under_way(nursery: trio.Nursery) -> None:
    stream = RecordingStream()
    stream.gate = trio.Event()
    framed = FramedStream(stream)
    nursery.start_soon(framed.run_writer)
    framed.send_nowait(chunk(1))
    await trio.testing.wait_all_tasks_blocked()
    for n in range(2, 10):
        framed.send_nowait(chunk(n))
        await trio.lowlevel.checkpoint()
    stream.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert stream.writes == [
        encode_frame(chunk(1)),
        b"".join(encode_frame(chunk(n)) for n in range(2, 10)),
    ]
    assert stream.memory.held_bytes == 0


async def test_a_write_stays_within_one_noise_message() -> None:
    stream = RecordingStream()
    framed = FramedStream(stream)
    for n in range(1, 50):
        framed.send_nowait(chunk(n, b"x" * (BULK_BYTES_MIN - HEADER.size - 1)))
    await written(stream, framed)
    assert all(len(write) <= WRITE_BYTES_MAX for write in stream.writes)


async def test_tokens_pass_between_the_pieces_of_an_upload() -> None:
    stream = RecordingStream()
    framed = FramedStream(stream)
    pieces = [Frame(FrameType.JOB_DATA, 1, bytes([n]) * 100 * KIB) for n in range(3)]
    others = [Frame(FrameType.JOB_DATA, 2, bytes([n]) * 100 * KIB) for n in range(3)]
    for frame in [*pieces, *others]:
        framed.send_nowait(frame)
    cancel = Frame(FrameType.JOB_CANCEL, 1, b"")
    framed.send_nowait(cancel)
    framed.send_nowait(chunk(3))
    await written(stream, framed)
    order = [
        chunk(3),
        *[frame for pair in zip(pieces, others, strict=True) for frame in pair],
        cancel,
    ]
    assert b"".join(stream.writes) == b"".join(map(encode_frame, order))


async def test_full_queue_is_told_at_once_and_waited_for_on_request(
    nursery: trio.Nursery,
) -> None:
    stream = RecordingStream()
    stream.gate = trio.Event()
    framed = FramedStream(stream, queue_bytes_max=1000)
    nursery.start_soon(framed.run_writer)
    framed.send_nowait(chunk(1, b"x" * 900))
    with pytest.raises(Backpressure):
        framed.send_nowait(chunk(1, b"x" * 200))
    nursery.start_soon(framed.send, chunk(1, b"y" * 200))
    await trio.testing.wait_all_tasks_blocked()
    assert not stream.writes
    framed.send_reserved(Frame(FrameType.CLOSE, 1, b""))
    stream.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert b"y" * 200 in b"".join(stream.writes)


async def test_sending_after_the_end_fails() -> None:
    framed = FramedStream(RecordingStream())
    await framed.aclose()
    with pytest.raises(StreamClosed):
        framed.send_nowait(chunk(1))
    with pytest.raises(StreamClosed):
        await framed.send(chunk(1))


async def test_oversized_body_is_our_own_mistake() -> None:
    framed = FramedStream(RecordingStream())
    with pytest.raises(LocalProtocolError):
        framed.send_nowait(chunk(1, b"x" * (FRAME_BYTES_MAX + 1)))


FRAMES = st.builds(
    Frame,
    st.sampled_from(FrameType),
    st.integers(0, 2**32 - 1),
    st.binary(max_size=300),
)


@settings(max_examples=60)
@given(st.lists(FRAMES, max_size=20), st.lists(st.integers(1, 400), min_size=1))
def test_frames_survive_any_cutting(frames: list[Frame], cuts: list[int]) -> None:
    wire = b"".join(map(encode_frame, frames))
    pieces: list[bytes] = []
    while wire:
        cut = cuts[len(pieces) % len(cuts)]
        pieces.append(wire[:cut])
        wire = wire[cut:]

    async def read_all() -> list[Frame]:
        framed = FramedStream(RecordingStream(pieces))
        received = []
        while (frame := await framed.receive()) is not None:
            received.append(frame)
        return received

    async def read_batches() -> list[Frame]:
        framed = FramedStream(RecordingStream(pieces))
        received = []
        while batch := await framed.receive_batch():
            received += batch
        return received

    assert trio.run(read_all) == frames
    assert trio.run(read_batches) == frames


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 40_000)), max_size=40))
def test_each_channel_keeps_its_order(sends: list[tuple[int, int]]) -> None:
    frames = [
        Frame(FrameType.JOB_DATA, channel, number.to_bytes(4) + b"x" * size)
        for number, (channel, size) in enumerate(sends)
    ]

    async def pass_through() -> list[Frame]:
        stream = RecordingStream()
        framed = FramedStream(stream)
        for frame in frames:
            framed.send_nowait(frame)
        wire = await written(stream, framed)
        back = FramedStream(RecordingStream([wire]))
        return await back.receive_batch() if frames else []

    received = trio.run(pass_through)
    for channel in range(1, 6):
        assert [f for f in received if f.channel == channel] == [
            f for f in frames if f.channel == channel
        ]


@pytest.mark.parametrize(
    ("wire", "code"),
    [
        (HEADER.pack(9, FrameType.HELLO, 0, 0), Code.UNKNOWN_VERSION),
        (HEADER.pack(1, FrameType.HELLO, 0, FRAME_BYTES_MAX + 1), Code.FRAME_TOO_LARGE),
        (encode_frame(chunk(1))[:-1], Code.TRUNCATED),
        (b"\x01", Code.TRUNCATED),
    ],
)
async def test_broken_frames_are_named(wire: bytes, code: Code) -> None:
    framed = FramedStream(RecordingStream([wire]))
    with pytest.raises(RemoteProtocolError) as caught:
        await framed.receive()
    assert caught.value.code is code


async def greeted_with(wire: bytes) -> Hello:
    return await FramedStream(RecordingStream([wire])).exchange_hello("client")


async def test_hello_tells_versions_and_role() -> None:
    stream = RecordingStream([encode_frame(Frame(FrameType.HELLO, 0, encode(Hello((1,), "node"))))])
    assert await FramedStream(stream).exchange_hello("client") == Hello((1,), "node")
    assert decode(Hello, stream.writes[0][HEADER.size :]) == Hello((1,), "client")


async def test_later_versions_are_fine_if_they_also_speak_ours() -> None:
    hello = Hello((1, 2, 3), "node")
    assert await greeted_with(encode_frame(Frame(FrameType.HELLO, 0, encode(hello)))) == hello


@pytest.mark.parametrize(
    ("frame", "code"),
    [
        (Frame(FrameType.HELLO, 0, encode(Hello((2,), "node"))), Code.UNKNOWN_VERSION),
        (Frame(FrameType.HELLO, 1, encode(Hello((1,), "node"))), Code.UNEXPECTED_FRAME),
        (Frame(FrameType.REQUEST, 1, b""), Code.UNEXPECTED_FRAME),
        (Frame(FrameType.HELLO, 0, b"\xff"), Code.MALFORMED),
        (Frame(FrameType.ERROR, 0, encode(ErrorBody(Code.DRAINING, "bye"))), Code.DRAINING),
    ],
)
async def test_wrong_greetings_are_named(frame: Frame, code: Code) -> None:
    with pytest.raises(RemoteProtocolError) as caught:
        await greeted_with(encode_frame(frame))
    assert caught.value.code is code


async def test_a_stream_that_ends_before_the_greeting_is_closed() -> None:
    with pytest.raises(StreamClosed):
        await greeted_with(b"")


async def test_silent_peer_does_not_hold_a_greeting(autojump_clock: MockClock) -> None:
    pair = Pair()
    async with pair.running():
        ours, _ = await pair.streams()
        with pytest.raises(NetTimeout):
            await FramedStream(ours).exchange_hello("client")


@virtual_time
async def test_peer_that_reads_nothing_times_out() -> None:
    pair = Pair()
    async with pair.running():
        ours: Stream
        ours, _ = await pair.streams()
        framed = FramedStream(ours)
        for _ in range(10):
            framed.send_nowait(chunk(1, b"x" * 200_000))
        with pytest.raises(NetTimeout):
            await framed.run_writer()


@virtual_time
async def test_closing_lets_queued_frames_leave(nursery: trio.Nursery) -> None:
    pair = Pair()
    async with pair.running():
        ours, theirs = await pair.streams()
        sender, receiver = FramedStream(ours), FramedStream(theirs)
        nursery.start_soon(sender.run_writer)
        for n in range(1, 20):
            sender.send_nowait(chunk(n))
        await sender.aclose()
        received = []
        while (frame := await receiver.receive()) is not None:
            received.append(frame.channel)
        assert received == list(range(1, 20))


class DrippingStream(RecordingStream):
    """Gives one byte at a time, with a pause before each."""

    def __init__(self, wire: bytes, pause_s: float) -> None:
        super().__init__([bytes([byte]) for byte in wire])
        self._pause_s = pause_s

    def send_nowait(self, data: bytes) -> bool:
        return False

    async def receive_some(self, max_bytes: int = RECEIVE_BYTES_MAX) -> bytes:
        await trio.sleep(self._pause_s)
        return await super().receive_some(max_bytes)


@virtual_time
async def test_a_frame_that_trickles_in_is_given_up_at_its_deadline() -> None:
    framed = FramedStream(DrippingStream(encode_frame(chunk(1, b"x" * 1000)), pause_s=4))
    started_at = trio.current_time()
    with pytest.raises(RemoteProtocolError) as caught:
        await framed.receive()
    assert caught.value.code is Code.DEADLINE_EXCEEDED
    assert trio.current_time() - started_at <= FRAME_WITHIN_S + 4


@virtual_time
async def test_each_frame_has_a_deadline_of_its_own() -> None:
    frames = [chunk(n, b"12345") for n in range(1, 6)]
    framed = FramedStream(DrippingStream(b"".join(map(encode_frame, frames)), pause_s=1.5))
    assert [await framed.receive() for _ in frames] == frames


@virtual_time
async def test_a_stream_may_be_silent_between_frames_for_as_long_as_it_likes() -> None:
    frame = chunk(1)
    framed = FramedStream(DrippingStream(b"", pause_s=10 * FRAME_WITHIN_S))
    assert await framed.receive() is None
    stream = RecordingStream([encode_frame(frame)])
    assert await FramedStream(stream).receive() == frame


async def test_what_waits_in_either_direction_is_charged_until_it_is_gone() -> None:
    stream = RecordingStream([encode_frame(chunk(1, b"x" * 1000))[:-1], b"x"])
    framed = FramedStream(stream)
    for _ in range(10):
        framed.send_nowait(chunk(2, b"y" * 1000))
    assert stream.memory.held_bytes > 10_000
    await written(stream, framed)
    assert stream.memory.held_bytes == 0
    await framed.receive()
    await framed.reset()
    assert stream.memory.held_bytes == 0
