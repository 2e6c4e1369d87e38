"""Conversations on one link: they do not mix, end alone, and are bounded."""

import pytest
import trio

from protocol.errors import Code, RemoteProtocolError
from protocol.framing import FrameType
from protocol.limits import FRAME_BYTES_MAX, PAYLOAD_BYTES_MAX
from protocol.net.channels import Channel
from protocol.net.errors import Backpressure, NetTimeout, StreamClosed
from protocol.net.link import CHANNEL_BYTES_MAX, Link, LinkLimits
from protocol.net.memory_wire import Conditions
from tests.protocol.net.pairs import CHANNELS, Pair, echo
from tests.protocol.net.virtual import virtual_time


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
async def test_a_receiver_waits_no_longer_than_it_says() -> None:
    pair = Pair()
    pair.serve_channels(echo)
    async with pair.running() as nursery:
        link = await pair.link(nursery)
        channels = {10.0: link.open_channel(), 2.0: link.open_channel(), 5.0: link.open_channel()}
        began_at = trio.current_time()
        ended: list[float] = []

        async def wait(channel: Channel, within_s: float) -> None:
            with pytest.raises(NetTimeout):
                await channel.receive(by=began_at + within_s)
            ended.append(trio.current_time() - began_at)

        async with trio.open_nursery() as waiting:
            for within_s, channel in channels.items():
                waiting.start_soon(wait, channel, within_s)
        assert ended == pytest.approx([2.0, 5.0, 10.0])
        late = channels[10.0]
        late.send_nowait(FrameType.EVENT, b"x")
        await trio.sleep(1)
        with pytest.raises(NetTimeout):
            await late.receive(by=trio.current_time())
        assert (await late.receive(by=trio.current_time() + 1)).body == b"x"


@virtual_time
async def test_a_frame_in_time_outlives_its_deadline() -> None:
    pair = Pair(Conditions(latency_s=0.4))
    pair.serve_channels(echo)
    async with pair.running() as nursery:
        channel = (await pair.link(nursery)).open_channel()
        for _ in range(5):
            channel.send_nowait(FrameType.EVENT, b"x")
            assert (await channel.receive(by=trio.current_time() + 1)).body == b"x"
        with pytest.raises(NetTimeout):
            await channel.receive(by=trio.current_time() + 1)


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
