from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
import trio

from protocol.codec import encode
from protocol.errors import Code, RemoteProtocolError
from protocol.framing import FrameType
from protocol.ids import PeerId
from protocol.net.channels import Channel
from protocol.net.errors import NetTimeout, StreamClosed
from protocol.net.memory_wire import Conditions
from protocol.net.rpc import RequestBody, RpcClient, RpcServer
from tests.protocol.net.contract import key_of
from tests.protocol.net.pairs import Pair
from tests.protocol.net.test_pool import pooled
from tests.protocol.net.virtual import virtual_time


@dataclass(frozen=True, slots=True)
class Ask:
    number: int


@dataclass(frozen=True, slots=True)
class Reply:
    number: int
    asker: PeerId


async def double(peer: PeerId, ask: Ask) -> Reply:
    if ask.number < 0:
        raise RemoteProtocolError("below zero", code=Code.INVALID_INPUT, retry_after_ms=7)
    if ask.number == 13:
        raise ZeroDivisionError("a bug with a secret")
    if ask.number > 1000:
        await trio.sleep_forever()
    await trio.sleep(ask.number / 100)
    return Reply(2 * ask.number, peer)


@asynccontextmanager
async def asking() -> AsyncIterator[tuple[RpcClient, PeerId, Pair]]:
    server = RpcServer()
    server.register("double", Ask, double)
    pair = Pair(Conditions(latency_s=0.01))
    pair.serve_channels(server.serve_channel)
    async with pooled(pair) as pool:
        yield RpcClient(pool), pair.server.peer_id, pair


async def call(client: RpcClient, peer: PeerId, number: int, timeout_s: float = 60) -> Reply:
    return await client.call(peer, "double", Ask(number), Reply, timeout_s=timeout_s)


@virtual_time
async def test_the_answer_comes_back_and_the_server_knows_who_asked() -> None:
    async with asking() as (client, peer, _):
        assert await call(client, peer, 21) == Reply(42, key_of(1).peer_id)


@virtual_time
async def test_questions_do_not_wait_for_each_other() -> None:
    async with asking() as (client, peer, _):
        answers: list[int] = []

        async def ask(number: int) -> None:
            answers.append((await call(client, peer, number)).number)

        async with trio.open_nursery() as nursery:
            for number in (5, 1, 3, 7):
                nursery.start_soon(ask, number)
        assert answers == [2, 6, 10, 14]


@virtual_time
async def test_refusal_raises_what_the_server_raised() -> None:
    async with asking() as (client, peer, _):
        with pytest.raises(RemoteProtocolError, match="below zero") as caught:
            await call(client, peer, -1)
        assert caught.value.code is Code.INVALID_INPUT
        assert caught.value.retry_after_ms == 7


@virtual_time
async def test_crash_is_internal_and_the_next_question_works() -> None:
    async with asking() as (client, peer, _):
        with pytest.raises(RemoteProtocolError) as caught:
            await call(client, peer, 13)
        assert caught.value.code is Code.INTERNAL
        assert "secret" not in str(caught.value)
        assert (await call(client, peer, 1)).number == 2


@virtual_time
async def test_no_answer_in_time_is_a_timeout() -> None:
    async with asking() as (client, peer, _):
        with pytest.raises(NetTimeout):
            await call(client, peer, 2000, timeout_s=3)


@virtual_time
async def test_server_gives_up_by_itself() -> None:
    async with asking() as (client, peer, _):
        with pytest.raises(RemoteProtocolError) as caught:
            await call(client, peer, 2000)
        assert caught.value.code is Code.DEADLINE_EXCEEDED


@virtual_time
async def test_answered_questions_leave_no_channel_behind() -> None:
    async with asking() as (client, peer, _):
        for _ in range(20):
            await call(client, peer, 0)
        await trio.sleep(1)
        assert client.pool.statistics().channels == 0
        assert client.pool.statistics().opened == 1


@virtual_time
async def test_lost_peer_fails_the_question() -> None:
    async with asking() as (client, peer, pair):
        await call(client, peer, 0)

        async def kill_soon() -> None:
            await trio.sleep(0.1)
            pair.network.kill(peer)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_soon)
            with pytest.raises(StreamClosed):
                await call(client, peer, 900)


@pytest.mark.parametrize(
    ("frame_type", "body", "code"),
    [
        (FrameType.EVENT, b"", Code.UNEXPECTED_FRAME),
        (FrameType.REQUEST, b"\xc1", Code.MALFORMED),
        (FrameType.REQUEST, encode(RequestBody("unknown", b"")), Code.NOT_FOUND),
        (FrameType.REQUEST, encode(RequestBody("double", b"\x80")), Code.MALFORMED),
        (FrameType.REQUEST, encode(RequestBody("double", encode(Ask(1)) + b"x")), None),
    ],
)
@virtual_time
async def test_bad_questions_get_typed_answers(
    frame_type: FrameType, body: bytes, code: Code | None
) -> None:
    async with asking() as (client, peer, _):
        channel = await client.pool.open_channel(peer, timeout_s=5)
        channel.send_nowait(frame_type, body)
        with pytest.raises(RemoteProtocolError) as caught:
            await channel.receive()
        assert caught.value.code is (code or Code.TRAILING_BYTES)
        assert (await call(client, peer, 1)).number == 2


@virtual_time
async def test_wrong_answers_are_the_servers_fault() -> None:
    async def nonsense(channel: Channel) -> None:
        request = await channel.receive()
        channel.send_nowait(
            FrameType.EVENT if b"event" in request.body else FrameType.REPLY, b"\x80"
        )

    pair = Pair()
    pair.serve_channels(nonsense)
    async with pooled(pair) as pool:
        client = RpcClient(pool)
        for method, code in (("event", Code.UNEXPECTED_FRAME), ("reply", Code.MALFORMED)):
            with pytest.raises(RemoteProtocolError) as caught:
                await client.call(pair.server.peer_id, method, Ask(1), Reply, timeout_s=5)
            assert caught.value.code is code


@virtual_time
async def test_a_peer_that_is_not_admitted_has_nothing_of_its_question_decoded() -> None:
    def refuse(peer: PeerId) -> None:
        raise RemoteProtocolError("too often", code=Code.RATE_LIMITED)

    server = RpcServer(admit=refuse)
    server.register("double", Ask, double)
    pair = Pair(Conditions(latency_s=0.01))
    pair.serve_channels(server.serve_channel)
    async with pooled(pair) as pool:
        channel = await pool.open_channel(pair.server.peer_id, timeout_s=5)
        channel.send_nowait(FrameType.REQUEST, b"\xc1 no message at all")
        with pytest.raises(RemoteProtocolError) as caught:
            await channel.receive()
    assert caught.value.code is Code.RATE_LIMITED
