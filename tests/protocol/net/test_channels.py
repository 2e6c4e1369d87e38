from contextlib import suppress

import pytest
import trio

from protocol.codec import decode, encode
from protocol.errors import Code, ErrorBody, RemoteProtocolError
from protocol.framing import HEADER, Frame, FrameDecoder, FrameType, encode_frame
from protocol.limits import FRAME_BYTES_MAX, KIB, PAYLOAD_BYTES_MAX
from protocol.net.channels import (
    CHANNEL_BYTES_MAX,
    LATE_HANDLERS_MAX,
    Channel,
    Link,
    LinkLimits,
    error_body,
)
from protocol.net.errors import Backpressure, NetTimeout, StreamClosed
from protocol.net.frames import FramedStream, Hello
from protocol.net.memory_wire import Conditions
from protocol.net.transport import Stream
from tests.protocol.net.contract import receive_all
from tests.protocol.net.pairs import CHANNELS, Pair
from tests.protocol.net.virtual import virtual_time


async def echo(channel: Channel) -> None:
    while True:
        frame = await channel.receive()
        channel.send_nowait(frame.type, frame.body)


@virtual_time
async def test_conversations_share_a_stream_and_do_not_mix() -> None:
    pair = Pair(Conditions(latency_s=0.01))
    pair.serve_channels(echo)
    async with pair.running() as nursery:
        link = await pair.link(nursery)
        assert link.peer_role == "server"
        channels = [link.open_channel() for _ in range(5)]
        for turn in range(3):
            for channel in channels:
                channel.send_nowait(FrameType.EVENT, bytes([channel.number, turn]))
        for turn in range(3):
            for channel in channels:
                frame = await channel.receive()
                assert frame.body == bytes([channel.number, turn])
        assert pair.client.statistics().streams_opened == 1
        assert link.channels_open == 5


@virtual_time
async def test_closing_ends_the_conversation_on_both_sides() -> None:
    ended = trio.Event()

    async def wait_end(channel: Channel) -> None:
        assert (await channel.receive()).body == b"hello"
        with pytest.raises(StreamClosed):
            await channel.receive()
        ended.set()

    pair = Pair()
    pair.serve_channels(wait_end)
    async with pair.running() as nursery:
        link = await pair.link(nursery)
        channel = link.open_channel()
        channel.send_nowait(FrameType.EVENT, b"hello")
        channel.close()
        channel.close()
        await ended.wait()
        assert channel.is_closed
        assert link.channels_open == 0
        with pytest.raises(StreamClosed):
            channel.send_nowait(FrameType.EVENT, b"more")
        with pytest.raises(StreamClosed):
            await channel.receive()


@virtual_time
async def test_what_was_sent_before_the_close_is_received() -> None:
    async def talk(channel: Channel) -> None:
        await channel.receive()
        for n in range(10):
            channel.send_nowait(FrameType.EVENT, bytes([n]))

    pair = Pair()
    pair.serve_channels(talk)
    async with pair.running() as nursery:
        channel = (await pair.link(nursery)).open_channel()
        channel.send_nowait(FrameType.REQUEST)
        await trio.sleep(1)
        assert channel.is_closed
        assert [(await channel.receive()).body for _ in range(10)] == [
            bytes([n]) for n in range(10)
        ]
        with pytest.raises(StreamClosed):
            await channel.receive()


@virtual_time
async def test_receive_nowait_says_when_nothing_is_there() -> None:
    pair = Pair()
    pair.serve_channels(echo)
    async with pair.running() as nursery:
        channel = (await pair.link(nursery)).open_channel()
        with pytest.raises(trio.WouldBlock):
            channel.receive_nowait()
        channel.send_nowait(FrameType.EVENT, b"x")
        await trio.sleep(1)
        assert channel.receive_nowait().body == b"x"


@virtual_time
async def test_late_frames_of_a_closed_conversation_are_dropped() -> None:
    async def pour(channel: Channel) -> None:
        await channel.receive()
        for _ in range(100):
            await channel.send(FrameType.EVENT, b"late")
            await trio.sleep(0.001)

    pair = Pair(Conditions(latency_s=0.05))
    pair.serve_channels(pour)
    async with pair.running() as nursery:
        link = await pair.link(nursery)
        channel = link.open_channel()
        channel.send_nowait(FrameType.REQUEST)
        await channel.receive()
        channel.close()
        await trio.sleep(1)
        other = link.open_channel()
        other.send_nowait(FrameType.REQUEST)
        assert (await other.receive()).body == b"late"
        assert link.failure is None


@virtual_time
async def test_conversations_may_begin_in_any_order() -> None:
    pair = Pair()
    pair.serve_channels(echo)
    async with pair.running() as nursery:
        link = await pair.link(nursery)
        channels = [link.open_channel() for _ in range(6)]
        # The first has to wait for its turn with a bulky frame, and the last speaks first.
        channels[0].send_nowait(FrameType.JOB_DATA, b"x" * 100_000)
        for channel in reversed(channels[1:]):
            channel.send_nowait(FrameType.EVENT, b"hello")
        with trio.fail_after(5):
            for channel in channels:
                await channel.receive()


@virtual_time
async def test_handler_error_reaches_the_peer_with_its_code() -> None:
    async def refuse(channel: Channel) -> None:
        await channel.receive()
        raise RemoteProtocolError("come back later", code=Code.BUSY, retry_after_ms=500)

    pair = Pair()
    pair.serve_channels(refuse)
    async with pair.running() as nursery:
        link = await pair.link(nursery)
        for _ in range(2):
            channel = link.open_channel()
            channel.send_nowait(FrameType.REQUEST)
            with pytest.raises(RemoteProtocolError, match="come back later") as caught:
                await channel.receive()
            assert caught.value.code is Code.BUSY
            assert caught.value.retry_after_ms == 500


@virtual_time
async def test_handler_crash_tells_nothing_but_that() -> None:
    async def crash(channel: Channel) -> None:
        await channel.receive()
        raise ValueError("secret path /home/operator")

    pair = Pair()
    pair.serve_channels(crash)
    async with pair.running() as nursery:
        channel = (await pair.link(nursery)).open_channel()
        channel.send_nowait(FrameType.REQUEST)
        with pytest.raises(RemoteProtocolError, match="internal error") as caught:
            await channel.receive()
        assert caught.value.code is Code.INTERNAL
        assert "secret" not in str(caught.value)


@virtual_time
async def test_too_many_conversations_are_refused_on_both_sides() -> None:
    pair = Pair()
    pair.serve_channels(echo)
    async with pair.running() as nursery:
        link = await pair.link(nursery)
        for _ in range(8):
            link.open_channel().send_nowait(FrameType.EVENT)
        with pytest.raises(Backpressure):
            link.open_channel()

        stream = await pair.client.open_stream(pair.server.peer_id, CHANNELS, timeout_s=5)
        greedy = Link(stream, role="client", limits=LinkLimits(channels_max=100))
        await greedy.greet()
        nursery.start_soon(greedy.run)
        channels = [greedy.open_channel() for _ in range(9)]
        for channel in channels:
            channel.send_nowait(FrameType.EVENT, b"x")
        with pytest.raises(RemoteProtocolError) as caught:
            await channels[-1].receive()
        assert caught.value.code is Code.BUSY
        assert (await channels[0].receive()).body == b"x"


@virtual_time
async def test_a_whole_payload_may_wait_for_a_busy_handler() -> None:
    received = []

    async def busy(channel: Channel) -> None:
        await trio.sleep(10)
        size = 0
        while size < PAYLOAD_BYTES_MAX:
            size += len((await channel.receive()).body)
        received.append(size)

    pair = Pair()
    pair.serve_channels(busy)
    async with pair.running() as nursery:
        channel = (await pair.link(nursery)).open_channel()
        for _ in range(PAYLOAD_BYTES_MAX // FRAME_BYTES_MAX):
            channel.send_nowait(FrameType.JOB_DATA, b"x" * FRAME_BYTES_MAX)
        await trio.sleep(20)
    assert received == [PAYLOAD_BYTES_MAX]


@virtual_time
async def test_conversation_that_outgrows_its_bound_ends_alone() -> None:
    failures: list[Exception] = []

    async def sleepy(channel: Channel) -> None:
        if (await channel.receive()).body == b"echo":
            await echo(channel)
        await trio.sleep(1000)
        try:
            await channel.receive()
        except Backpressure as error:
            failures.append(error)

    pair = Pair()
    pair.serve_channels(sleepy)
    async with pair.running() as nursery:
        link = await pair.link(nursery)
        beside, flood = link.open_channel(), link.open_channel()
        beside.send_nowait(FrameType.EVENT, b"echo")

        async def pour() -> None:
            for _ in range(2 + CHANNEL_BYTES_MAX // FRAME_BYTES_MAX):
                await flood.send(FrameType.JOB_DATA, b"x" * FRAME_BYTES_MAX)

        await pour()
        with pytest.raises(RemoteProtocolError) as caught:
            await flood.receive()
        assert caught.value.code is Code.BUSY
        beside.send_nowait(FrameType.EVENT, b"alive")
        assert (await beside.receive()).body == b"alive"
        await trio.sleep(1001)
    assert len(failures) == 1


@virtual_time
async def test_flood_of_empty_frames_is_bounded_too() -> None:
    async def never_receives(channel: Channel) -> None:
        await trio.sleep(1000)

    pair = Pair()
    pair.serve_channels(never_receives)
    async with pair.running() as nursery:
        flood = (await pair.link(nursery)).open_channel()

        async def pour() -> None:
            while True:
                for _ in range(5000):
                    flood.send_nowait(FrameType.EVENT)
                await trio.lowlevel.checkpoint()

        with pytest.raises(StreamClosed):
            await pour()


@virtual_time
async def test_dead_connection_fails_every_conversation() -> None:
    pair = Pair()
    pair.serve_channels(echo)
    async with pair.running() as nursery:
        link = await pair.link(nursery)
        channels = [link.open_channel() for _ in range(3)]
        pair.network.kill(pair.server.peer_id)
        for channel in channels:
            with pytest.raises(StreamClosed):
                await channel.receive()
            with pytest.raises(StreamClosed):
                channel.send_nowait(FrameType.EVENT)
        with pytest.raises(StreamClosed):
            link.open_channel()


@virtual_time
async def test_handlers_finish_in_peace_when_the_peer_is_gone() -> None:
    finished = trio.Event()

    async def careful(channel: Channel) -> None:
        with pytest.raises(StreamClosed):
            await echo(channel)
        await trio.sleep(3)  # As a node does, that writes its receipt down.
        finished.set()

    pair = Pair()
    pair.serve_channels(careful)
    async with pair.running() as nursery:
        (await pair.link(nursery)).open_channel().send_nowait(FrameType.EVENT)
        await trio.sleep(1)
        await pair.client.disconnect(pair.server.peer_id)
        with trio.fail_after(10):
            await finished.wait()


@virtual_time
async def test_closing_a_link_lets_its_last_frames_leave() -> None:
    received = []

    async def keep(channel: Channel) -> None:
        received.append((await channel.receive()).body)

    pair = Pair(Conditions(latency_s=0.1))
    pair.serve_channels(keep)
    async with pair.running() as nursery:
        link = await pair.link(nursery)
        link.open_channel().send_nowait(FrameType.EVENT, b"last words")
        link.close()
        await trio.sleep(1)
        assert received == [b"last words"]
        assert link.failure is None
        assert not link.is_open


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
