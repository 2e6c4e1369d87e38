"""The in-memory network: the contract, and what only a simulated network can do."""

import random

import pytest
import trio
from trio.testing import MockClock

from protocol.keys import SigningKey
from protocol.net.errors import AddressInUse, ConnectFailed, NetTimeout, StreamClosed
from protocol.net.memory import LIVENESS_S, MemoryNetwork, MemoryTransport
from protocol.net.memory_wire import WINDOW_BYTES, Conditions
from protocol.net.relay_places import RelayLimits
from protocol.net.transport import Stream
from tests.protocol.net.contract import (
    ECHO,
    SOON_S,
    TOPIC,
    TransportContract,
    echo,
    key_of,
    receive_all,
    receive_exactly,
    wait_gone,
)
from tests.protocol.net.virtual import all_in_virtual_time, virtual_time


class MemoryWorld:
    def __init__(self, network: MemoryNetwork) -> None:
        self.network = network

    def make(
        self, key: SigningKey, *, relay: RelayLimits | None = None, is_dialable: bool = True
    ) -> MemoryTransport:
        return self.network.transport(key, relay=relay, is_dialable=is_dialable)


@all_in_virtual_time
class TestMemoryTransport(TransportContract):
    @pytest.fixture(
        params=[
            Conditions(),
            Conditions(latency_s=0.03, jitter_s=0.02),
            Conditions(latency_s=0.01, loss=0.02, gossip_delay_s=0.5),
        ],
        ids=["perfect", "distant", "lossy"],
    )
    def world(self, request: pytest.FixtureRequest) -> MemoryWorld:
        return MemoryWorld(MemoryNetwork(random.Random(7), conditions=request.param))


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork(random.Random(1), conditions=Conditions(latency_s=0.05))


@pytest.fixture
async def pair(
    network: MemoryNetwork, nursery: trio.Nursery
) -> tuple[MemoryTransport, MemoryTransport]:
    """Connected; the second serves ECHO."""
    client, server = network.transport(key_of(1)), network.transport(key_of(2))
    server.handle(ECHO, echo)
    await nursery.start(server.run)
    await nursery.start(client.run)
    await client.connect(server.addresses[0], timeout_s=SOON_S)
    return client, server


Pair = tuple[MemoryTransport, MemoryTransport]


@virtual_time
async def test_a_round_trip_takes_twice_the_latency(pair: Pair) -> None:
    client, server = pair
    assert await client.ping(server.peer_id, timeout_s=1) == pytest.approx(0.1)
    stream = await client.open_stream(server.peer_id, ECHO, timeout_s=1)
    started_at = trio.current_time()
    await stream.send_all(b"x")
    await stream.receive_some()
    assert trio.current_time() - started_at == pytest.approx(0.1)


@virtual_time
async def test_conditions_can_change_under_way(pair: Pair, network: MemoryNetwork) -> None:
    client, server = pair
    network.set_conditions(client.peer_id, server.peer_id, Conditions(latency_s=1.0))
    assert await client.ping(server.peer_id, timeout_s=3) == pytest.approx(2.0)


@virtual_time
async def test_writer_is_stopped_by_the_window(pair: Pair) -> None:
    client, server = pair
    stream = await client.open_stream(server.peer_id, ECHO, timeout_s=1)
    with trio.move_on_after(0.01) as scope:
        await stream.send_all(b"x" * (WINDOW_BYTES + 1))
    assert scope.cancelled_caught


@virtual_time
async def test_short_partition_only_delays(pair: Pair, network: MemoryNetwork) -> None:
    client, server = pair
    stream = await client.open_stream(server.peer_id, ECHO, timeout_s=1)
    network.partition([server.peer_id])
    await stream.send_all(b"patience")
    with trio.move_on_after(LIVENESS_S / 2):
        await stream.receive_some()
        pytest.fail("nothing crosses a partition")
    network.heal()
    assert await receive_exactly(stream, 8) == b"patience"
    assert client.connected_peers() == {server.peer_id}


@virtual_time
async def test_long_partition_ends_connections_on_both_sides(
    pair: Pair, network: MemoryNetwork
) -> None:
    client, server = pair
    stream = await client.open_stream(server.peer_id, ECHO, timeout_s=1)
    started_at = trio.current_time()
    network.partition([server.peer_id])
    with pytest.raises(StreamClosed):
        await receive_all(stream)
    assert trio.current_time() - started_at == pytest.approx(LIVENESS_S)
    await wait_gone(client, server.peer_id)
    await wait_gone(server, client.peer_id)
    with pytest.raises(NetTimeout):
        await client.connect(server.addresses[0], timeout_s=5)
    network.heal()
    await client.connect(server.addresses[0], timeout_s=5)
    assert client.statistics().peers_timed_out == 1


@virtual_time
async def test_one_way_cut_lets_the_other_way_pass_for_a_while(
    pair: Pair, network: MemoryNetwork
) -> None:
    client, server = pair
    stream = await client.open_stream(server.peer_id, ECHO, timeout_s=SOON_S)
    await stream.send_all(b"heard")
    await trio.sleep(0.06)
    network.cut(client.peer_id, server.peer_id)
    with trio.fail_after(1):
        assert await receive_exactly(stream, 5) == b"heard"
    await stream.send_all(b"unheard")
    with trio.move_on_after(LIVENESS_S / 2):
        await stream.receive_some()
        pytest.fail("nothing crosses a cut")
    network.mend(client.peer_id, server.peer_id)
    with trio.fail_after(1):
        assert await receive_exactly(stream, 7) == b"unheard"


@virtual_time
@pytest.mark.parametrize("is_client_mute", [True, False])
async def test_both_sides_of_a_one_way_cut_give_up(
    pair: Pair, network: MemoryNetwork, is_client_mute: bool
) -> None:
    """The one is not heard; the other hears, and gets no answer to its pings."""
    client, server = pair
    mute, deaf = (client, server) if is_client_mute else (server, client)
    network.cut(mute.peer_id, deaf.peer_id)
    await trio.sleep(LIVENESS_S + 1)
    assert client.connected_peers() == server.connected_peers() == frozenset()
    with pytest.raises(NetTimeout):
        await client.connect(server.addresses[0], timeout_s=SOON_S)
    network.heal()
    await client.connect(server.addresses[0], timeout_s=SOON_S)


@virtual_time
async def test_dialling_across_a_partition_succeeds_when_it_heals(
    pair: Pair, network: MemoryNetwork, nursery: trio.Nursery
) -> None:
    _, server = pair
    late = network.transport(key_of(3))
    await nursery.start(late.run)
    network.partition([late.peer_id])

    async def heal_soon() -> None:
        await trio.sleep(3)
        network.heal()

    nursery.start_soon(heal_soon)
    assert await late.connect(server.addresses[0], timeout_s=10) == server.peer_id


@virtual_time
async def test_killed_peer_is_noticed_after_one_latency(pair: Pair, network: MemoryNetwork) -> None:
    client, server = pair
    stream = await client.open_stream(server.peer_id, ECHO, timeout_s=1)
    started_at = trio.current_time()
    network.kill(server.peer_id)
    with pytest.raises(StreamClosed):
        await receive_all(stream)
    assert trio.current_time() - started_at == pytest.approx(0.05)
    assert client.connected_peers() == frozenset()


@virtual_time
async def test_peer_that_was_killed_behind_a_partition_is_noticed_when_it_heals(
    pair: Pair, network: MemoryNetwork
) -> None:
    client, server = pair
    stream = await client.open_stream(server.peer_id, ECHO, timeout_s=1)
    network.partition([server.peer_id])
    network.kill(server.peer_id)
    await trio.sleep(LIVENESS_S / 2)
    assert client.connected_peers() == {server.peer_id}
    network.heal()
    healed_at = trio.current_time()
    with trio.fail_after(SOON_S), pytest.raises(StreamClosed):
        await receive_all(stream)
    assert trio.current_time() - healed_at == pytest.approx(2 * 0.05)
    assert client.connected_peers() == frozenset()


@virtual_time
@pytest.mark.parametrize("is_mended", [True, False])
async def test_peer_that_was_killed_while_it_was_not_heard_is_given_up(
    pair: Pair, network: MemoryNetwork, is_mended: bool
) -> None:
    """The watch of a cut connection ended with the process that could not be heard."""
    client, server = pair
    stream = await client.open_stream(server.peer_id, ECHO, timeout_s=1)
    network.cut(server.peer_id, client.peer_id)
    await trio.sleep(1)
    network.kill(server.peer_id)
    if is_mended:
        network.mend(server.peer_id, client.peer_id)
    with trio.fail_after(LIVENESS_S), pytest.raises(StreamClosed):
        await receive_all(stream)
    assert client.connected_peers() == frozenset()
    assert client.statistics().peers_timed_out == 1


@virtual_time
async def test_killed_peer_comes_back_at_its_old_address(
    pair: Pair, network: MemoryNetwork, nursery: trio.Nursery
) -> None:
    client, server = pair
    address = server.addresses[0]
    network.kill(server.peer_id)
    reborn = network.transport(key_of(2))
    reborn.handle(ECHO, echo)
    await nursery.start(reborn.run)
    assert reborn.addresses == (address,)
    await trio.sleep(1)
    await client.connect(address, timeout_s=SOON_S)
    stream = await client.open_stream(reborn.peer_id, ECHO, timeout_s=SOON_S)
    await stream.send_all(b"hello")
    assert await receive_exactly(stream, 5) == b"hello"


@virtual_time
async def test_two_processes_with_one_key_listen_apart(
    pair: Pair, network: MemoryNetwork, nursery: trio.Nursery
) -> None:
    _, server = pair
    twin = network.transport(key_of(2))
    await nursery.start(twin.run)
    assert twin.peer_id == server.peer_id
    assert twin.addresses != server.addresses


@virtual_time
async def test_port_taken_is_a_typed_error(pair: Pair, network: MemoryNetwork) -> None:
    _, server = pair
    port = int(server.addresses[0].split("/")[2])
    with pytest.raises(AddressInUse):
        await network.transport(key_of(3), port=port).run()


@virtual_time
async def test_heavy_loss_ends_the_connection(pair: Pair, network: MemoryNetwork) -> None:
    client, server = pair
    stream = await client.open_stream(server.peer_id, ECHO, timeout_s=1)
    network.set_conditions(client.peer_id, server.peer_id, Conditions(loss=0.9))

    async def talk() -> None:
        for _ in range(1000):
            await stream.send_all(b"x")
            await stream.receive_some()

    with pytest.raises(StreamClosed):
        await talk()


@virtual_time
async def test_gossip_may_come_twice_when_the_world_says_so(
    nursery: trio.Nursery,
) -> None:
    network = MemoryNetwork(random.Random(3), conditions=Conditions(gossip_duplicates=1.0))
    first, last = network.transport(key_of(1)), network.transport(key_of(2))
    await nursery.start(first.run)
    await nursery.start(last.run)
    await first.connect(last.addresses[0], timeout_s=1)
    queue = last.subscribe(TOPIC, lambda data, via: True, queue_max=10)
    await first.publish(TOPIC, b"twice")
    with trio.fail_after(5):
        assert [(await queue.receive()).data for _ in range(2)] == [b"twice", b"twice"]


async def _trace(seed: int) -> list[tuple[float, int]]:
    """When each piece of a talk over a bad network arrived."""
    network = MemoryNetwork(
        random.Random(seed), conditions=Conditions(latency_s=0.02, jitter_s=0.05, loss=0.05)
    )
    trace: list[tuple[float, int]] = []

    async def serve(stream: Stream) -> None:
        while data := await stream.receive_some():
            trace.append((round(trio.current_time(), 6), len(data)))

    async with trio.open_nursery() as nursery:
        server, client = network.transport(key_of(1)), network.transport(key_of(2))
        server.handle(ECHO, serve)
        await nursery.start(server.run)
        await nursery.start(client.run)
        await client.connect(server.addresses[0], timeout_s=SOON_S)
        stream = await client.open_stream(server.peer_id, ECHO, timeout_s=SOON_S)
        for size in range(1, 50):
            await stream.send_all(bytes(size))
            await trio.sleep(0.01)
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    return trace


def test_one_seed_makes_one_run() -> None:
    def run(seed: int) -> list[tuple[float, int]]:
        return trio.run(_trace, seed, clock=MockClock(autojump_threshold=0))

    first, second, other = run(1), run(1), run(2)
    start = first[0][0] - second[0][0]
    assert [size for _, size in first] == [size for _, size in second]
    assert all(
        a[0] - b[0] == pytest.approx(start, abs=1e-5) for a, b in zip(first, second, strict=True)
    )
    assert first != other


@virtual_time
async def test_a_machine_that_moves_learns_its_new_address(
    network: MemoryNetwork, pair: tuple[MemoryTransport, MemoryTransport]
) -> None:
    client, server = pair
    old = server.addresses[0]
    server.move(77)
    assert server.addresses == (old,)
    assert server.refresh_addresses()
    assert server.addresses != (old,)
    await wait_gone(client, server.peer_id)
    with pytest.raises(ConnectFailed):
        await client.connect(old, timeout_s=SOON_S)
    assert await client.connect(server.addresses[0], timeout_s=SOON_S) == server.peer_id
