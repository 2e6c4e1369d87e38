"""A link and a peer that does not keep the protocol: what ends, and what the peer is told."""

from contextlib import suppress

import pytest
import trio

from protocol.codec import decode, encode
from protocol.errors import Code, ErrorBody, RemoteProtocolError
from protocol.framing import HEADER, Frame, FrameDecoder, FrameType, encode_frame
from protocol.limits import KIB
from protocol.net.channels import Channel
from protocol.net.errors import NetTimeout, StreamClosed
from protocol.net.frames import FramedStream, Hello
from protocol.net.link import LATE_HANDLERS_MAX, error_body
from protocol.net.pace import CHANNEL_COST, WORK
from protocol.net.transport import Stream
from tests.protocol.net.contract import receive_all
from tests.protocol.net.pairs import CHANNELS, Pair, echo
from tests.protocol.net.virtual import virtual_time


async def speak_raw(pair: Pair, *frames: Frame, raw: bytes = b"") -> Frame | None:
    """Greet as a client, send anything, and return what the server says on channel 0."""
    stream: Stream = await pair.client.open_stream(pair.server.peer_id, CHANNELS, timeout_s=5)
    framed = FramedStream(stream)
    await framed.exchange_hello("client")
    await stream.send_all(b"".join(map(encode_frame, frames)) + raw)
    await stream.send_eof()
    return await framed.receive()


@pytest.mark.parametrize(
    ("frames", "raw", "code"),
    [
        ((Frame(FrameType.HELLO, 0, b""),), b"", Code.UNEXPECTED_FRAME),
        ((), b"\x07garbage that is no frame", Code.UNKNOWN_VERSION),
        ((), b"\x01\x01", Code.TRUNCATED),
    ],
)
@virtual_time
async def test_broken_protocol_ends_the_stream_with_the_reason(
    frames: tuple[Frame, ...], raw: bytes, code: Code
) -> None:
    pair = Pair()
    pair.serve_channels(echo)
    async with pair.running() as nursery:
        answer = await speak_raw(pair, *frames, raw=raw)
        assert answer is not None
        assert answer.channel == 0
        assert decode(ErrorBody, answer.body).code is code
        # The next good stream works.
        channel = (await pair.link(nursery)).open_channel()
        channel.send_nowait(FrameType.EVENT, b"fine")
        assert (await channel.receive()).body == b"fine"


@virtual_time
async def test_peer_of_another_version_is_told_so() -> None:
    pair = Pair()
    pair.serve_channels(echo)
    async with pair.running():
        stream = await pair.client.open_stream(pair.server.peer_id, CHANNELS, timeout_s=5)
        hello = Frame(FrameType.HELLO, 0, encode(Hello((7,), "client")))
        await stream.send_all(encode_frame(hello))
        framed = FramedStream(stream)
        assert (await framed.receive()) is not None  # The server's own greeting.
        answer = await framed.receive()
        assert answer is not None
        assert decode(ErrorBody, answer.body).code is Code.UNKNOWN_VERSION


@virtual_time
async def test_peer_that_never_greets_is_dropped() -> None:
    pair = Pair()
    pair.serve_channels(echo)
    async with pair.running():
        stream = await pair.client.open_stream(pair.server.peer_id, CHANNELS, timeout_s=5)
        with trio.fail_after(10):
            decoder = FrameDecoder()
            decoder.feed(await receive_all(stream))
        assert decoder.next_frame() is not None  # The server's own greeting.
        answer = decoder.next_frame()
        assert answer is not None
        assert decode(ErrorBody, answer.body).code is Code.DEADLINE_EXCEEDED


@virtual_time
async def test_error_of_the_stream_fails_its_conversations() -> None:
    async def end_it_all(stream: Stream) -> None:
        framed = FramedStream(stream)
        await framed.exchange_hello("server")
        await framed.refuse(ErrorBody(Code.DRAINING, "going home"))

    pair = Pair()
    pair.server.handle(CHANNELS, end_it_all)
    async with pair.running() as nursery:
        channel = (await pair.link(nursery)).open_channel()
        with pytest.raises(StreamClosed, match="going home"):
            await channel.receive()


def test_peers_learn_codes_and_nothing_else() -> None:
    assert error_body(RemoteProtocolError("no", code=Code.BUSY)) == ErrorBody(Code.BUSY, "no")
    assert error_body(KeyError("/etc/passwd")) == ErrorBody(Code.INTERNAL, "internal error")
    assert error_body(NetTimeout("x")).code is Code.DEADLINE_EXCEEDED
    assert len(error_body(RemoteProtocolError("x" * 9999, code=Code.BUSY)).message) == 1000


# What a peer does that it should not, or that only a later version understands.


async def answer_once(channel: Channel) -> None:
    frame = await channel.receive()
    if frame.type is not FrameType.REQUEST:
        raise RemoteProtocolError(f"not {frame.type.name}", code=Code.UNEXPECTED_FRAME)
    channel.send_nowait(FrameType.REPLY, frame.body)


async def exchange(pair: Pair, *wires: bytes, pause_s: float = 0.1) -> list[Frame]:
    """All frames that the server answers, when these bytes come one after the other."""
    stream = await pair.client.open_stream(pair.server.peer_id, CHANNELS, timeout_s=5)
    await stream.send_all(encode_frame(Frame(FrameType.HELLO, 0, encode(Hello((1,), "client")))))
    with suppress(StreamClosed):  # The server may have ended the stream for what came before.
        for wire in wires:
            await stream.send_all(wire)
            await trio.sleep(pause_s)
        await stream.send_eof()
    decoder = FrameDecoder()
    decoder.feed(await receive_all(stream))
    frames = []
    while (frame := decoder.next_frame()) is not None:
        frames.append(frame)
    assert frames[0].type is FrameType.HELLO
    return frames[1:]


def codes_of(frames: list[Frame]) -> list[tuple[int, str]]:
    """Channel and type of each frame; the code, for an ERROR."""
    return [
        (f.channel, decode(ErrorBody, f.body).code if f.type is FrameType.ERROR else f.type.name)
        for f in frames
    ]


REQUEST_1 = encode_frame(Frame(FrameType.REQUEST, 1, b"one"))
ANSWER_1 = [(1, "REPLY"), (1, "CLOSE")]


@pytest.mark.parametrize(
    ("wires", "answers"),
    [
        pytest.param(
            (REQUEST_1, REQUEST_1),
            [*ANSWER_1, (1, Code.UNEXPECTED_FRAME), (1, "CLOSE")],
            id="a number used again",
        ),
        pytest.param(
            (REQUEST_1, encode_frame(Frame(FrameType.EVENT, 1, b"late"))), ANSWER_1, id="late"
        ),
        pytest.param(
            (HEADER.pack(1, 200, 3, 1) + b"?", REQUEST_1),
            [(3, Code.UNEXPECTED_FRAME), (3, "CLOSE"), *ANSWER_1],
            id="an unknown type spoils its channel only",
        ),
        pytest.param(
            (HEADER.pack(1, 200, 0, 0), REQUEST_1),
            [(0, Code.UNEXPECTED_FRAME)],
            id="an unknown type on the stream itself",
        ),
        pytest.param(
            (encode_frame(Frame(FrameType.HELLO, 0, encode(Hello((1,), "client")))), REQUEST_1),
            [(0, Code.UNEXPECTED_FRAME)],
            id="a second HELLO",
        ),
        pytest.param(
            (encode_frame(Frame(FrameType.HELLO, 4, b"")), REQUEST_1),
            [(4, Code.UNEXPECTED_FRAME), (4, "CLOSE"), *ANSWER_1],
            id="a HELLO on a channel",
        ),
        pytest.param(
            (HEADER.pack(2, FrameType.REQUEST, 1, 0), REQUEST_1),
            [(0, Code.UNKNOWN_VERSION)],
            id="another version",
        ),
    ],
)
@virtual_time
async def test_what_is_out_of_order_gets_a_named_answer(
    wires: tuple[bytes, ...], answers: list[tuple[int, str]]
) -> None:
    pair = Pair()
    pair.serve_channels(answer_once)
    async with pair.running():
        assert codes_of(await exchange(pair, *wires)) == answers


@virtual_time
async def test_a_number_that_the_peer_closed_and_uses_again_keeps_its_new_conversation() -> None:
    release = trio.Event()

    async def slow_then_echo(channel: Channel) -> None:
        frame = await channel.receive()
        if frame.body == b"first":
            await release.wait()
            return
        release.set()
        await trio.sleep(1)
        channel.send_nowait(FrameType.REPLY, frame.body)

    pair = Pair()
    pair.serve_channels(slow_then_echo)
    first = encode_frame(Frame(FrameType.REQUEST, 1, b"first"))
    close = encode_frame(Frame(FrameType.CLOSE, 1, b""))
    second = encode_frame(Frame(FrameType.REQUEST, 1, b"second"))
    async with pair.running():
        frames = await exchange(pair, first + close + second, pause_s=5)
        assert [(f.type, f.body) for f in frames] == [
            (FrameType.REPLY, b"second"),
            (FrameType.CLOSE, b""),
        ]


@virtual_time
async def test_opening_and_closing_in_a_loop_is_bounded_by_the_work_that_runs() -> None:
    running = peak = 0

    async def never_ends(channel: Channel) -> None:
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        try:
            await trio.sleep(100)
        finally:
            running -= 1

    pair = Pair()
    pair.serve_channels(never_ends)
    flood = b"".join(
        encode_frame(Frame(FrameType.REQUEST, n, b""))
        + encode_frame(Frame(FrameType.CLOSE, n, b""))
        for n in range(1, 1001)
    )
    async with pair.running():
        stream = await pair.client.open_stream(pair.server.peer_id, CHANNELS, timeout_s=5)
        hello = Frame(FrameType.HELLO, 0, encode(Hello((1,), "client")))
        await stream.send_all(encode_frame(hello) + flood)
        await trio.sleep(1)
        assert peak == 8 + LATE_HANDLERS_MAX


@virtual_time
async def test_conversations_are_begun_at_a_bounded_pace() -> None:
    closed = 0

    async def ends_at_once(_: Channel) -> None:
        """Done."""

    async def count_closed(framed: FramedStream) -> None:
        nonlocal closed
        while frames := await framed.receive_batch():
            closed += sum(frame.type is FrameType.CLOSE for frame in frames)

    pair = Pair()
    pair.serve_channels(ends_at_once)
    count = 4 * WORK.burst // CHANNEL_COST
    async with pair.running() as nursery:
        stream = await pair.client.open_stream(pair.server.peer_id, CHANNELS, timeout_s=5)
        framed = FramedStream(stream)
        await framed.exchange_hello("client")
        nursery.start_soon(count_closed, framed)
        for number in range(1, count + 1):
            await stream.send_all(encode_frame(Frame(FrameType.REQUEST, number, b"")))
        await trio.sleep(1)
        assert closed < count
        await trio.sleep(4 * WORK.burst / WORK.per_s)
        assert closed == count


@virtual_time
async def test_what_waits_for_a_slow_handler_is_charged_to_its_connection() -> None:
    async def never_reads(_: Channel) -> None:
        await trio.sleep(100)

    pair = Pair()
    pair.serve_channels(never_reads)
    async with pair.running() as nursery:
        link = await pair.link(nursery)
        channel = link.open_channel()
        for _ in range(16):
            await channel.send(FrameType.EVENT, bytes(128 * KIB))
        await trio.sleep(1)
        assert pair.server.statistics().buffered_bytes >= 16 * 128 * KIB
        channel.close()
        link.close()
        await trio.sleep(200)
        assert pair.server.statistics().buffered_bytes < 64 * KIB
