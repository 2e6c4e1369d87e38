import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from protocol.framing import FrameType
from protocol.ids import PeerId
from protocol.net.channels import Channel
from protocol.net.errors import (
    Backpressure,
    ConnectFailed,
    NetError,
    NetTimeout,
    PeerMismatch,
    ProtocolUnsupported,
    StreamClosed,
)
from protocol.net.link import serve_channels
from protocol.net.memory import MemoryNetwork
from protocol.net.memory_wire import Conditions
from protocol.net.pool import PoolOptions, StreamPool
from protocol.net.racing import HEAD_START_S, FailedDials, connect_first
from protocol.net.relay_places import RelayLimits
from protocol.net.transport import Stream
from tests.protocol.net.contract import key_of, reserve
from tests.protocol.net.pairs import CHANNELS, Pair, echo
from tests.protocol.net.virtual import virtual_time

DEFAULT = PoolOptions()
NEAR = Conditions(latency_s=0.01)


@asynccontextmanager
async def pooled(pair: Pair, options: PoolOptions = DEFAULT) -> AsyncIterator[StreamPool]:
    pool = StreamPool(pair.client, CHANNELS, role="client", rng=random.Random(1), options=options)
    async with pair.running() as nursery:
        await nursery.start(pool.run)
        yield pool


async def open_and_talk(pool: StreamPool, peer: PeerId, **more: object) -> Channel:
    channel = await pool.open_channel(peer, timeout_s=20, **more)  # type: ignore[arg-type]
    channel.send_nowait(FrameType.EVENT, b"hello")
    assert (await channel.receive()).body == b"hello"
    return channel


def echoing(conditions: Conditions = NEAR) -> Pair:
    pair = Pair(conditions)
    pair.serve_channels(echo)
    return pair


@virtual_time
async def test_one_stream_serves_all_callers() -> None:
    pair = echoing()
    async with pooled(pair) as pool:
        async with trio.open_nursery() as callers:
            for _ in range(5):
                callers.start_soon(open_and_talk, pool, pair.server.peer_id)
        await open_and_talk(pool, pair.server.peer_id)
        assert pair.client.statistics().streams_opened == 1
        assert pool.statistics().opened == 1
        assert pool.statistics().channels == 6


@virtual_time
async def test_callers_move_to_a_direct_connection_when_there_is_one() -> None:
    network = MemoryNetwork(random.Random(5), conditions=NEAR)
    relay = network.transport(key_of(3), relay=RelayLimits())
    client = network.transport(key_of(1))
    server = network.transport(key_of(2), is_dialable=False)
    pool = StreamPool(client, CHANNELS, role="client", rng=random.Random(1))

    async def serve(stream: Stream) -> None:
        await serve_channels(stream, echo, role="server")

    server.handle(CHANNELS, serve)
    async with trio.open_nursery() as nursery:
        for run in (relay.run, client.run, server.run, pool.run):
            await nursery.start(run)
        address = await reserve(server, relay)
        old = await open_and_talk(pool, server.peer_id, addresses=(address,))
        await server.connect(client.addresses[0], timeout_s=5)
        new = await open_and_talk(pool, server.peer_id)
        assert pool.statistics().opened == 2
        for channel in (old, new):
            channel.send_nowait(FrameType.EVENT, b"still here")
            assert (await channel.receive()).body == b"still here"
        assert relay.statistics().circuits == 1
        old.close()
        await trio.sleep(1)
        assert relay.statistics().circuits == 0
        new.send_nowait(FrameType.EVENT, b"and here")
        assert (await new.receive()).body == b"and here"
        nursery.cancel_scope.cancel()


@virtual_time
async def test_unconnected_peer_is_dialled_at_its_addresses() -> None:
    pair = echoing()
    async with pooled(pair) as pool:
        await pair.client.disconnect(pair.server.peer_id)
        dead = pair.server.addresses[0].replace("/memory/", "/memory/99")
        wrong = f"/ip4/1.2.3.4/udp/1/p2p/{pair.server.peer_id}"
        await open_and_talk(
            pool, pair.server.peer_id, addresses=(wrong, dead, *pair.server.addresses)
        )


@virtual_time
async def test_peer_without_connection_or_address_fails() -> None:
    pair = echoing()
    async with pooled(pair) as pool:
        with pytest.raises(ConnectFailed):
            await pool.open_channel(key_of(9).peer_id, timeout_s=20)
        assert pool.statistics().failed == 1


@virtual_time
async def test_address_of_another_peer_is_refused_without_retry() -> None:
    pair = echoing()
    async with pooled(pair) as pool:
        stranger = key_of(9).peer_id
        started_at = trio.current_time()
        with pytest.raises(PeerMismatch):
            await pool.open_channel(stranger, addresses=pair.server.addresses, timeout_s=20)
        assert trio.current_time() - started_at < 0.05


@virtual_time
async def test_dead_stream_is_opened_again_on_demand() -> None:
    pair = echoing()
    async with pooled(pair) as pool:
        for _ in range(3):
            channel = await open_and_talk(
                pool, pair.server.peer_id, addresses=pair.server.addresses
            )
            await pair.client.disconnect(pair.server.peer_id)
            with pytest.raises(StreamClosed):
                await channel.receive()
        await trio.sleep(1)
        assert pool.statistics().links == 0
        assert pool.statistics().opened == 3


@virtual_time
async def test_opening_survives_a_peer_that_restarts() -> None:
    refusals = 2

    async def refuse_at_first(stream: Stream) -> None:
        nonlocal refusals
        refusals -= 1
        if refusals >= 0:
            await stream.reset()
            return
        await serve_channels(stream, echo, role="server")

    pair = Pair(Conditions(latency_s=0.01))
    pair.server.handle(CHANNELS, refuse_at_first)
    async with pooled(pair) as pool:
        await open_and_talk(pool, pair.server.peer_id)
        assert pool.statistics().failed == 0


@virtual_time
async def test_tries_are_bounded() -> None:
    tries = 0

    async def refuse(stream: Stream) -> None:
        nonlocal tries
        tries += 1
        await stream.reset()

    pair = Pair()
    pair.server.handle(CHANNELS, refuse)
    async with pooled(pair) as pool:
        with pytest.raises(NetError):
            await pool.open_channel(pair.server.peer_id, timeout_s=60)
        assert tries == DEFAULT.tries


@virtual_time
async def test_unknown_protocol_is_not_retried() -> None:
    pair = Pair()
    async with pooled(pair) as pool:
        with pytest.raises(ProtocolUnsupported):
            await pool.open_channel(pair.server.peer_id, timeout_s=20)


@virtual_time
async def test_impatient_caller_does_not_spoil_the_opening_for_others() -> None:
    pair = echoing(Conditions(latency_s=0.5))
    async with pooled(pair) as pool:
        async with trio.open_nursery() as callers:
            callers.start_soon(open_and_talk, pool, pair.server.peer_id)
            with pytest.raises(NetTimeout):
                await pool.open_channel(pair.server.peer_id, timeout_s=0.1)
        assert pool.statistics().opened == 1


@virtual_time
async def test_peer_that_hangs_while_greeting_times_out() -> None:
    async def hang(stream: Stream) -> None:
        await trio.sleep_forever()

    pair = Pair()
    pair.server.handle(CHANNELS, hang)
    async with pooled(pair) as pool:
        started_at = trio.current_time()
        with pytest.raises(NetTimeout):
            await pool.open_channel(pair.server.peer_id, timeout_s=60)
        assert trio.current_time() - started_at < 12


@virtual_time
async def test_idle_stream_is_closed_and_a_busy_one_kept() -> None:
    pair = echoing()
    async with pooled(pair, PoolOptions(idle_s=60)) as pool:
        channel = await open_and_talk(pool, pair.server.peer_id)
        await trio.sleep(300)
        assert pool.statistics().links == 1
        channel.close()
        await trio.sleep(300)
        assert pool.statistics().links == 0
        await open_and_talk(pool, pair.server.peer_id)


@virtual_time
async def test_closing_a_peer_fails_its_channels() -> None:
    pair = echoing()
    async with pooled(pair) as pool:
        channel = await open_and_talk(pool, pair.server.peer_id)
        pool.close(pair.server.peer_id)
        pool.close(key_of(9).peer_id)
        with pytest.raises(StreamClosed):
            await channel.receive()


@virtual_time
async def test_the_end_of_a_stream_can_be_waited_for() -> None:
    pair = echoing()
    async with pooled(pair) as pool:
        await pool.wait_closed(pair.server.peer_id)
        await open_and_talk(pool, pair.server.peer_id)
        with trio.move_on_after(60) as too_early:
            await pool.wait_closed(pair.server.peer_id)
        assert too_early.cancelled_caught
        pool.close(pair.server.peer_id)
        with trio.fail_after(1):
            await pool.wait_closed(pair.server.peer_id)


@virtual_time
async def test_channels_to_one_peer_are_bounded() -> None:
    pair = echoing()
    async with pooled(pair, PoolOptions(channels_max=2)) as pool:
        channels = [await open_and_talk(pool, pair.server.peer_id) for _ in range(2)]
        with pytest.raises(Backpressure):
            await pool.open_channel(pair.server.peer_id, timeout_s=5)
        channels[0].close()
        await open_and_talk(pool, pair.server.peer_id)


@virtual_time
async def test_pool_that_is_not_running_says_so() -> None:
    pair = echoing()
    async with pair.running():
        pool = StreamPool(pair.client, CHANNELS, role="client", rng=random.Random(1))
        with pytest.raises(StreamClosed):
            await pool.open_channel(pair.server.peer_id, timeout_s=5)


@virtual_time
async def test_who_asks_while_the_pool_stops_is_told_that_it_does_not_run() -> None:
    """At every turn of the scheduler until it is gone. Found by the simulator: a node that stopped
    while its line to a coordinator was being opened again."""
    pair = echoing()
    pool = StreamPool(pair.client, CHANNELS, role="client", rng=random.Random(1))
    running = trio.CancelScope()

    async def run(*, task_status: trio.TaskStatus[None]) -> None:
        with running:
            await pool.run(task_status=task_status)

    async with pair.running() as nursery:
        await nursery.start(run)
        running.cancel()
        for _ in range(10):
            with pytest.raises(NetError):
                await pool.open_channel(pair.server.peer_id, timeout_s=1)


@virtual_time
async def test_an_address_that_swallows_dials_costs_a_head_start_once() -> None:
    pair = echoing()
    server, took_s = pair.server, []
    pair.network.swallow(98)
    hole = f"/memory/98/p2p/{server.peer_id}"
    async with pooled(pair) as pool:
        for _ in range(2):
            pool.close(server.peer_id)
            await pair.client.disconnect(server.peer_id)
            await trio.sleep(0.1)
            started_at = trio.current_time()
            await open_and_talk(pool, server.peer_id, addresses=(hole, *server.addresses))
            took_s.append(trio.current_time() - started_at)
        assert took_s[0] < HEAD_START_S + 0.1
        assert took_s[1] < 0.1


@virtual_time
async def test_the_first_address_that_answers_wins_and_the_other_dials_end() -> None:
    pair = echoing()
    pair.network.swallow(98)
    hole = f"/memory/98/p2p/{pair.server.peer_id}"
    async with pair.running():
        await pair.client.disconnect(pair.server.peer_id)
        addresses = (hole, *pair.server.addresses)
        failures = FailedDials()
        await connect_first(
            pair.client, pair.server.peer_id, addresses, within_s=5, failures=failures
        )
        assert pair.client.connected_peers() == {pair.server.peer_id}
        stranger = key_of(9).peer_id
        for addresses, error in (((), ConnectFailed), ((hole,), PeerMismatch)):
            with pytest.raises(error):
                await connect_first(pair.client, stranger, addresses, within_s=5, failures=failures)


@virtual_time
async def test_where_all_addresses_swallow_dials_the_deadline_ends_them() -> None:
    pair = echoing()
    for port in (97, 98):
        pair.network.swallow(port)
    holes = [f"/memory/{port}/p2p/{pair.server.peer_id}" for port in (97, 98)]
    async with pair.running():
        await pair.client.disconnect(pair.server.peer_id)
        started_at = trio.current_time()
        with pytest.raises(NetTimeout):
            await connect_first(
                pair.client, pair.server.peer_id, holes, within_s=5, failures=FailedDials()
            )
        assert trio.current_time() - started_at == pytest.approx(5 + HEAD_START_S, abs=0.1)
