"""What every transport must do. Subclassed by the tests of each implementation.

The subclass has a `world` fixture. Where the in-memory network and libp2p may differ (timing, who
notices first) the contract says nothing; deadlines here are only there to end a broken test.
"""

from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Protocol

import pytest
import trio

from protocol.errors import Code, LocalProtocolError, RemoteProtocolError
from protocol.ids import PeerId
from protocol.keys import SigningKey
from protocol.net.addresses import host_of
from protocol.net.errors import (
    AddressInvalid,
    Backpressure,
    ConnectFailed,
    PeerMismatch,
    ProtocolUnsupported,
    StreamClosed,
    StreamReset,
)
from protocol.net.relay_places import RelayLimits
from protocol.net.transport import (
    GOSSIP_BYTES_MAX,
    STREAMS_PER_CONNECTION_MAX,
    Gossip,
    Handler,
    Reservation,
    Stream,
    Transport,
)

ECHO = "/test/echo/1"
SCRIPT = "/test/script/1"
TOPIC = "/test/topic/1"
SOON_S = 10.0

OpenTo = Callable[[Handler], Awaitable[Stream]]
MakeMesh = Callable[[int], Awaitable[list[Transport]]]


class World(Protocol):
    """Makes transports that can reach each other."""

    def make(
        self, key: SigningKey, *, relay: RelayLimits | None = None, is_dialable: bool = True
    ) -> Transport: ...


def key_of(number: int) -> SigningKey:
    return SigningKey(bytes([number]) * 32)


async def echo(stream: Stream) -> None:
    while data := await stream.receive_some():
        await stream.send_all(data)


async def receive_exactly(stream: Stream, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        assert piece, f"the stream ended after {len(data)} of {size} bytes"
        data += piece
    return bytes(data)


async def wait_connected(transport: Transport, peer: PeerId) -> None:
    with trio.fail_after(SOON_S):
        while peer not in transport.connected_peers():  # noqa: ASYNC110 - no event to wait for
            await trio.sleep(0.01)


async def wait_gone(transport: Transport, peer: PeerId) -> None:
    with trio.fail_after(SOON_S):
        while peer in transport.connected_peers():  # noqa: ASYNC110 - no event to wait for
            await trio.sleep(0.01)


async def receive_all(stream: Stream) -> bytes:
    data = bytearray()
    while piece := await stream.receive_some():
        data += piece
    return bytes(data)


class TransportContract:
    """`alice` dials, `bob` serves ECHO. Both run until the test ends."""

    @pytest.fixture
    async def bob(self, world: World, nursery: trio.Nursery) -> Transport:
        bob = world.make(key_of(2))
        bob.handle(ECHO, echo)
        await nursery.start(bob.run)
        return bob

    @pytest.fixture
    async def alice(self, world: World, nursery: trio.Nursery, bob: Transport) -> Transport:
        alice = world.make(key_of(1))
        await nursery.start(alice.run)
        await alice.connect(bob.addresses[0], timeout_s=SOON_S)
        return alice

    @pytest.fixture
    def scripted(self, world: World, nursery: trio.Nursery) -> OpenTo:
        """Opens a stream to a fresh party that serves it with the given handler."""

        async def open_to(handler: Handler) -> Stream:
            server, client = world.make(key_of(11)), world.make(key_of(12))
            server.handle(SCRIPT, handler)
            await nursery.start(server.run)
            await nursery.start(client.run)
            peer = await client.connect(server.addresses[0], timeout_s=SOON_S)
            return await client.open_stream(peer, SCRIPT, timeout_s=SOON_S)

        return open_to

    # Connections.

    async def test_addresses_name_the_peer(self, alice: Transport, bob: Transport) -> None:
        assert bob.addresses
        assert all(address.endswith(f"/p2p/{bob.peer_id}") for address in bob.addresses)
        assert bob.peer_id == key_of(2).peer_id
        assert alice.connected_peers() == {bob.peer_id}

    async def test_both_sides_see_the_connection(self, alice: Transport, bob: Transport) -> None:
        with trio.fail_after(SOON_S):
            while bob.connected_peers() != {alice.peer_id}:  # noqa: ASYNC110  no event to wait for
                await trio.sleep(0.01)

    async def test_connecting_again_is_the_same_connection(
        self, alice: Transport, bob: Transport
    ) -> None:
        assert await alice.connect(bob.addresses[0], timeout_s=SOON_S) == bob.peer_id
        assert alice.statistics().connections == 1

    async def test_a_probe_dials_although_there_is_a_connection(
        self, world: World, nursery: trio.Nursery, alice: Transport, bob: Transport
    ) -> None:
        carol = world.make(key_of(3))
        await nursery.start(carol.run)
        await alice.probe(bob.addresses[0], timeout_s=SOON_S)
        await carol.probe(bob.addresses[0], timeout_s=SOON_S)
        assert alice.statistics().connections == 1
        assert carol.connected_peers() == frozenset()
        stream = await alice.open_stream(bob.peer_id, ECHO, timeout_s=SOON_S)
        await stream.send_all(b"still here")
        assert await receive_exactly(stream, 10) == b"still here"

    async def test_a_probe_finds_out_who_is_there(
        self, world: World, nursery: trio.Nursery, alice: Transport, bob: Transport
    ) -> None:
        place = bob.addresses[0].partition("/p2p/")[0]
        with pytest.raises(PeerMismatch):
            await alice.probe(f"{place}/p2p/{key_of(9).peer_id}", timeout_s=SOON_S)
        carol = world.make(key_of(3))
        async with trio.open_nursery() as life:
            await life.start(carol.run)
            address = carol.addresses[0]
            life.cancel_scope.cancel()
        with pytest.raises(ConnectFailed):
            await alice.probe(address, timeout_s=SOON_S)

    async def test_the_host_of_a_connected_peer_is_seen(
        self, alice: Transport, bob: Transport
    ) -> None:
        assert alice.observed_host(bob.peer_id) == host_of(bob.addresses[0])
        assert alice.observed_host(key_of(9).peer_id) == ""

    async def test_addresses_that_did_not_change_are_no_news(
        self, alice: Transport, bob: Transport
    ) -> None:
        before = bob.addresses
        assert not bob.refresh_addresses()
        assert bob.addresses == before
        await alice.ping(bob.peer_id, timeout_s=SOON_S)

    async def test_concurrent_connects_make_one_connection(
        self, world: World, nursery: trio.Nursery, bob: Transport
    ) -> None:
        carol = world.make(key_of(3))
        await nursery.start(carol.run)
        async with trio.open_nursery() as dials:
            for _ in range(5):

                async def dial() -> None:
                    assert await carol.connect(bob.addresses[0], timeout_s=SOON_S) == bob.peer_id

                dials.start_soon(dial)
        assert carol.statistics().connections == 1

    async def test_address_with_another_peers_id_is_refused(
        self, alice: Transport, bob: Transport
    ) -> None:
        stranger = key_of(99).peer_id
        address = bob.addresses[0].replace(bob.peer_id, stranger)
        with pytest.raises(PeerMismatch):
            await alice.connect(address, timeout_s=SOON_S)
        assert alice.connected_peers() == {bob.peer_id}

    async def test_dead_address_fails_to_connect(
        self, world: World, nursery: trio.Nursery, alice: Transport
    ) -> None:
        gone = world.make(key_of(4))
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as short:
                await short.start(gone.run)
                address = gone.addresses[0]
                scope.cancel()
        with pytest.raises(ConnectFailed):
            await alice.connect(address, timeout_s=SOON_S)

    async def test_a_failed_dial_does_not_block_the_next(
        self, world: World, nursery: trio.Nursery, alice: Transport, bob: Transport
    ) -> None:
        # py-libp2p refuses a peer for a minute after all its addresses failed once.
        await alice.disconnect(bob.peer_id)
        dead = bob.addresses[0].replace(bob.peer_id, key_of(5).peer_id)
        with pytest.raises(ConnectFailed):
            await alice.connect(dead, timeout_s=SOON_S)
        fifth = world.make(key_of(5))
        await nursery.start(fifth.run)
        assert await alice.connect(fifth.addresses[0], timeout_s=SOON_S) == fifth.peer_id

    @pytest.mark.parametrize(
        "address",
        [
            "",
            "nonsense",
            "/ip4/127.0.0.1/udp/4001/quic-v1/p2p/" + key_of(2).peer_id,
            "/ip4/127.0.0.1/tcp/4001/ws/p2p/" + key_of(2).peer_id,
            "/ip4/127.0.0.1/tcp/4001",
            "/ip4/127.0.0.1/tcp/99999/p2p/" + key_of(2).peer_id,
            "/ip4/127.0.0.1/tcp/4001/p2p/notanid",
            "/p2p/" + key_of(2).peer_id,
            "/ip4/127.0.0.1/tcp/4001/p2p/" + "1" * 1000,
        ],
    )
    async def test_unusable_address_is_refused(self, alice: Transport, address: str) -> None:
        with pytest.raises(AddressInvalid):
            await alice.connect(address, timeout_s=SOON_S)

    async def test_nobody_dials_himself(self, alice: Transport) -> None:
        with pytest.raises(ConnectFailed):
            await alice.connect(alice.addresses[0], timeout_s=SOON_S)

    async def test_both_sides_know_who_is_connected(
        self, world: World, nursery: trio.Nursery, bob: Transport
    ) -> None:
        carol = world.make(key_of(3))
        await nursery.start(carol.run)
        await carol.connect(bob.addresses[0], timeout_s=SOON_S)
        assert bob.peer_id in carol.connected_peers()
        await wait_connected(bob, carol.peer_id)
        await carol.disconnect(bob.peer_id)
        assert carol.connected_peers() == frozenset()
        await wait_gone(bob, carol.peer_id)

    async def test_disconnecting_a_stranger_does_nothing(self, alice: Transport) -> None:
        await alice.disconnect(key_of(77).peer_id)

    async def test_reconnecting_after_a_disconnect(self, alice: Transport, bob: Transport) -> None:
        for _ in range(3):
            await alice.disconnect(bob.peer_id)
            await alice.connect(bob.addresses[0], timeout_s=SOON_S)
            stream = await alice.open_stream(bob.peer_id, ECHO, timeout_s=SOON_S)
            await stream.send_all(b"again")
            assert await receive_exactly(stream, 5) == b"again"

    async def test_ping_takes_a_round_trip(self, alice: Transport, bob: Transport) -> None:
        for _ in range(3):
            assert 0 <= await alice.ping(bob.peer_id, timeout_s=SOON_S) < SOON_S

    async def test_pinging_a_stranger_fails(self, alice: Transport) -> None:
        with pytest.raises(ConnectFailed):
            await alice.ping(key_of(77).peer_id, timeout_s=SOON_S)

    # Streams.

    async def test_streams_carry_bytes_both_ways(self, alice: Transport, bob: Transport) -> None:
        stream = await alice.open_stream(bob.peer_id, ECHO, timeout_s=SOON_S)
        assert stream.peer == bob.peer_id
        for message in (b"x", b"y" * 1000, b"z" * 70_000):
            await stream.send_all(message)
            assert await receive_exactly(stream, len(message)) == message

    async def test_handler_knows_who_calls(self, scripted: OpenTo) -> None:
        async def tell(stream: Stream) -> None:
            await stream.send_all(stream.peer.encode())

        stream = await scripted(tell)
        assert await receive_all(stream) == key_of(12).peer_id.encode()

    async def test_unknown_protocol_is_refused(self, alice: Transport, bob: Transport) -> None:
        with pytest.raises(ProtocolUnsupported):
            await alice.open_stream(bob.peer_id, "/test/nobody/1", timeout_s=SOON_S)
        stream = await alice.open_stream(bob.peer_id, ECHO, timeout_s=SOON_S)
        await stream.send_all(b"fine")
        assert await receive_exactly(stream, 4) == b"fine"

    async def test_opening_without_a_connection_fails(self, alice: Transport) -> None:
        with pytest.raises(ConnectFailed):
            await alice.open_stream(key_of(77).peer_id, ECHO, timeout_s=SOON_S)

    async def test_half_close_lets_the_other_side_finish(self, scripted: OpenTo) -> None:
        async def answer_at_the_end(stream: Stream) -> None:
            question = await receive_all(stream)
            await stream.send_all(question[::-1] * 1000)

        stream = await scripted(answer_at_the_end)
        await stream.send_all(b"abc" * 1000)
        await stream.send_eof()
        with trio.fail_after(SOON_S):
            assert await receive_all(stream) == b"cba" * 1_000_000
        with pytest.raises(StreamClosed):
            await stream.send_all(b"more")

    async def test_returning_from_a_handler_ends_its_stream(self, scripted: OpenTo) -> None:
        async def goodbye(stream: Stream) -> None:
            await stream.send_all(b"bye")

        stream = await scripted(goodbye)
        with trio.fail_after(SOON_S):
            assert await receive_all(stream) == b"bye"

    async def test_reset_is_not_an_end_of_stream(self, scripted: OpenTo) -> None:
        async def drop(stream: Stream) -> None:
            await stream.receive_some()
            await stream.reset()

        stream = await scripted(drop)
        await stream.send_all(b"go")
        with trio.fail_after(SOON_S), pytest.raises(StreamReset):
            await receive_all(stream)
        with pytest.raises(StreamClosed):
            await stream.send_all(b"more")

    async def test_reset_after_closing_does_not_swallow_the_last_words(
        self, scripted: OpenTo
    ) -> None:
        async def refuse(stream: Stream) -> None:
            await stream.receive_some()
            await stream.send_all(b"no, because")
            await stream.aclose()
            raise RemoteProtocolError("refused", code=Code.MALFORMED)

        stream = await scripted(refuse)
        await stream.send_all(b"may I?")
        await trio.sleep(0.2)
        with trio.fail_after(SOON_S):
            assert await receive_all(stream) == b"no, because"

    async def test_handler_learns_of_a_reset(self, scripted: OpenTo) -> None:
        seen: list[type[BaseException]] = []
        done = trio.Event()

        async def listen(stream: Stream) -> None:
            try:
                await receive_all(stream)
            except StreamClosed as error:
                seen.append(type(error))
            done.set()

        stream = await scripted(listen)
        await stream.send_all(b"hello")
        await stream.reset()
        with trio.fail_after(SOON_S):
            await done.wait()
        assert seen == [StreamReset]
        with pytest.raises(StreamClosed):
            await stream.receive_some()

    async def test_closing_refuses_what_still_arrives(self, scripted: OpenTo) -> None:
        failed = trio.Event()

        async def pour(stream: Stream) -> None:
            try:
                while True:
                    await stream.send_all(b"x" * 10_000)
            except StreamClosed:
                failed.set()

        stream = await scripted(pour)
        await stream.receive_some()
        await stream.aclose()
        with trio.fail_after(SOON_S):
            await failed.wait()
        with pytest.raises(StreamClosed):
            await stream.receive_some()

    async def test_handler_crash_resets_its_stream_only(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        async def crash(stream: Stream) -> None:
            await stream.receive_some()
            raise ValueError("a bug")

        server, client = world.make(key_of(11)), world.make(key_of(12))
        server.handle(SCRIPT, crash)
        server.handle(ECHO, echo)
        await nursery.start(server.run)
        await nursery.start(client.run)
        peer = await client.connect(server.addresses[0], timeout_s=SOON_S)
        beside = await client.open_stream(peer, ECHO, timeout_s=SOON_S)
        for _ in range(3):
            stream = await client.open_stream(peer, SCRIPT, timeout_s=SOON_S)
            await stream.send_all(b"go")
            with trio.fail_after(SOON_S), pytest.raises(StreamReset):
                await receive_all(stream)
        await beside.send_all(b"alive")
        assert await receive_exactly(beside, 5) == b"alive"
        assert server.statistics().handlers_failed == 3

    async def test_handler_crash_in_a_nursery_is_contained(self, scripted: OpenTo) -> None:
        async def crash_in_a_task() -> None:
            raise RemoteProtocolError("their bug", code=Code.MALFORMED)

        async def crash(stream: Stream) -> None:
            await stream.receive_some()
            async with trio.open_nursery() as tasks:
                tasks.start_soon(crash_in_a_task)
                tasks.start_soon(trio.sleep_forever)

        stream = await scripted(crash)
        await stream.send_all(b"go")
        with trio.fail_after(SOON_S), pytest.raises(StreamReset):
            await receive_all(stream)

    async def test_large_transfer_arrives_intact(self, scripted: OpenTo) -> None:
        received: list[bytes] = []

        async def sink(stream: Stream) -> None:
            received.append(await receive_all(stream))
            await stream.send_all(b"done")

        data = bytes(range(256)) * 20_000
        stream = await scripted(sink)
        with trio.fail_after(30):
            for start in range(0, len(data), 700_001):
                await stream.send_all(data[start : start + 700_001])
            await stream.send_eof()
            assert await receive_all(stream) == b"done"
        assert received == [data]

    async def test_writer_waits_for_a_slow_reader(self, scripted: OpenTo) -> None:
        go = trio.Event()

        async def late(stream: Stream) -> None:
            await go.wait()
            await stream.send_all(str(len(await receive_all(stream))).encode())

        stream = await scripted(late)
        size = 4_000_000
        with trio.move_on_after(0.5) as too_soon:
            await stream.send_all(b"x" * size)
        assert too_soon.cancelled_caught, "nobody reads, but everything was taken"
        go.set()

    async def test_cancelled_receive_loses_nothing(self, alice: Transport, bob: Transport) -> None:
        stream = await alice.open_stream(bob.peer_id, ECHO, timeout_s=SOON_S)
        for _ in range(3):
            with trio.move_on_after(0.05):
                await stream.receive_some()
                pytest.fail("nothing was sent")
        await stream.send_all(b"still here")
        assert await receive_exactly(stream, 10) == b"still here"

    async def test_hundred_streams_at_once(self, alice: Transport, bob: Transport) -> None:
        async def talk(number: int) -> None:
            stream = await alice.open_stream(bob.peer_id, ECHO, timeout_s=30)
            for _ in range(3):
                message = number.to_bytes(4) * 100
                await stream.send_all(message)
                assert await receive_exactly(stream, len(message)) == message
            await stream.aclose()

        with trio.fail_after(30):
            async with trio.open_nursery() as talks:
                for number in range(100):
                    talks.start_soon(talk, number)

    async def test_too_many_streams_are_refused_not_awaited(
        self, alice: Transport, bob: Transport
    ) -> None:
        streams: list[Stream] = []

        async def open_too_many() -> None:
            while len(streams) <= STREAMS_PER_CONNECTION_MAX:
                streams.append(await alice.open_stream(bob.peer_id, ECHO, timeout_s=SOON_S))

        with trio.fail_after(60), pytest.raises(Backpressure):
            await open_too_many()
        assert len(streams) > STREAMS_PER_CONNECTION_MAX // 2
        for stream in streams[:10]:
            await stream.reset()
        await streams[-1].send_all(b"ok")
        assert await receive_exactly(streams[-1], 2) == b"ok"
        with trio.fail_after(SOON_S):
            await alice.open_stream(bob.peer_id, ECHO, timeout_s=SOON_S)

    async def test_streams_opened_one_after_another_do_not_pile_up(
        self, alice: Transport, bob: Transport
    ) -> None:
        for _ in range(STREAMS_PER_CONNECTION_MAX + 20):
            stream = await alice.open_stream(bob.peer_id, ECHO, timeout_s=SOON_S)
            await stream.aclose()

    async def test_disconnect_breaks_streams_on_both_sides(
        self, world: World, nursery: trio.Nursery
    ) -> None:
        broken = trio.Event()

        async def wait_end(stream: Stream) -> None:
            await stream.send_all(b"ready")
            with pytest.raises(StreamClosed):
                await receive_all(stream)
            broken.set()

        server, client = world.make(key_of(11)), world.make(key_of(12))
        server.handle(SCRIPT, wait_end)
        await nursery.start(server.run)
        await nursery.start(client.run)
        peer = await client.connect(server.addresses[0], timeout_s=SOON_S)
        stream = await client.open_stream(peer, SCRIPT, timeout_s=SOON_S)
        assert await receive_exactly(stream, 5) == b"ready"
        await client.disconnect(peer)
        with trio.fail_after(SOON_S):
            with pytest.raises(StreamClosed):
                await stream.receive_some()
            with pytest.raises(StreamClosed):
                await stream.send_all(b"x")
            await broken.wait()

    async def test_a_party_that_stops_breaks_its_streams(
        self, world: World, nursery: trio.Nursery, alice: Transport
    ) -> None:
        short_lived = world.make(key_of(6))
        short_lived.handle(ECHO, echo)
        with trio.CancelScope() as life:
            async with trio.open_nursery() as short:
                await short.start(short_lived.run)
                peer = await alice.connect(short_lived.addresses[0], timeout_s=SOON_S)
                stream = await alice.open_stream(peer, ECHO, timeout_s=SOON_S)
                await stream.send_all(b"x")
                assert await stream.receive_some() == b"x"
                life.cancel()
        with trio.fail_after(SOON_S):
            with pytest.raises(StreamClosed):
                await receive_all(stream)
        await wait_gone(alice, peer)

    # Relays: `hidden` serves ECHO where no other can dial it.

    @pytest.fixture
    async def relay(self, world: World, nursery: trio.Nursery) -> Transport:
        relay = world.make(key_of(20), relay=RelayLimits())
        await nursery.start(relay.run)
        return relay

    @pytest.fixture
    async def hidden(self, world: World, nursery: trio.Nursery) -> Transport:
        hidden = world.make(key_of(21), is_dialable=False)
        hidden.handle(ECHO, echo)
        await nursery.start(hidden.run)
        return hidden

    @pytest.fixture
    async def caller(self, world: World, nursery: trio.Nursery) -> Transport:
        caller = world.make(key_of(22))
        await nursery.start(caller.run)
        return caller

    async def test_a_place_at_a_relay_is_an_address(
        self, relay: Transport, hidden: Transport
    ) -> None:
        changed = trio.Event()
        place = hidden.reserve(relay.addresses[0], changed.set)
        with trio.fail_after(SOON_S):
            await changed.wait()
        assert place.relay == relay.peer_id
        assert f"{relay.addresses[0]}/p2p-circuit/p2p/{hidden.peer_id}" in place.addresses
        assert set(place.addresses) <= set(hidden.announced)
        assert relay.statistics().reservations == 1

    async def test_a_party_that_nobody_can_dial_is_reached_through_a_relay(
        self, relay: Transport, hidden: Transport, caller: Transport
    ) -> None:
        address = await reserve(hidden, relay)
        assert await caller.connect(address, timeout_s=SOON_S) == hidden.peer_id
        assert caller.relay_of(hidden.peer_id) == relay.peer_id
        assert caller.relay_of(relay.peer_id) is None
        stream = await caller.open_stream(hidden.peer_id, ECHO, timeout_s=SOON_S)
        assert stream.peer == hidden.peer_id
        assert stream.origin.relay == relay.peer_id
        data = bytes(range(256)) * 4000
        async with trio.open_nursery() as both:
            both.start_soon(send_and_end, stream, data)
            with trio.fail_after(SOON_S):
                assert await receive_all(stream) == data
        assert relay.statistics().circuits == 1
        assert relay.peer_id in caller.connected_peers()
        assert await caller.ping(hidden.peer_id, timeout_s=SOON_S) >= 0

    async def test_the_callee_knows_its_caller_and_the_relay(
        self, world: World, nursery: trio.Nursery, relay: Transport, caller: Transport
    ) -> None:
        async def tell(stream: Stream) -> None:
            await stream.send_all(f"{stream.peer} {stream.origin.relay}".encode())

        hidden = world.make(key_of(23), is_dialable=False)
        hidden.handle(SCRIPT, tell)
        await nursery.start(hidden.run)
        await caller.connect(await reserve(hidden, relay), timeout_s=SOON_S)
        stream = await caller.open_stream(hidden.peer_id, SCRIPT, timeout_s=SOON_S)
        assert await receive_all(stream) == f"{caller.peer_id} {relay.peer_id}".encode()

    async def test_a_party_without_a_place_cannot_be_called(
        self, relay: Transport, hidden: Transport, caller: Transport
    ) -> None:
        await hidden.connect(relay.addresses[0], timeout_s=SOON_S)
        address = f"{relay.addresses[0]}/p2p-circuit/p2p/{hidden.peer_id}"
        with pytest.raises(ConnectFailed, match="no_reservation"):
            await caller.connect(address, timeout_s=SOON_S)
        assert relay.statistics().circuits_refused == 1
        assert relay.statistics().circuits == 0

    async def test_a_party_that_is_no_relay_makes_no_circuits(
        self, bob: Transport, hidden: Transport, caller: Transport
    ) -> None:
        place = hidden.reserve(bob.addresses[0])
        with trio.fail_after(SOON_S):
            await wait_answered(place)
        assert place.addresses == ()
        assert "does not speak" in place.failure
        with pytest.raises(ConnectFailed):
            await caller.connect(
                f"{bob.addresses[0]}/p2p-circuit/p2p/{hidden.peer_id}", timeout_s=SOON_S
            )

    async def test_a_full_relay_says_so(
        self, world: World, nursery: trio.Nursery, hidden: Transport
    ) -> None:
        full = world.make(key_of(24), relay=RelayLimits(reservations_max=0))
        await nursery.start(full.run)
        place = hidden.reserve(full.addresses[0])
        with trio.fail_after(SOON_S):
            await wait_answered(place)
        assert "reservation_refused" in place.failure

    async def test_a_peer_gets_so_many_circuits(
        self, world: World, nursery: trio.Nursery, hidden: Transport, caller: Transport
    ) -> None:
        small = world.make(key_of(24), relay=RelayLimits(circuits_per_peer_max=1))
        await nursery.start(small.run)
        address = await reserve(hidden, small)
        await caller.connect(address, timeout_s=SOON_S)
        second = world.make(key_of(25))
        await nursery.start(second.run)
        with pytest.raises(ConnectFailed, match="resource_limit_exceeded"):
            await second.connect(address, timeout_s=SOON_S)
        await caller.disconnect(hidden.peer_id)
        with trio.fail_after(SOON_S):
            while small.statistics().circuits:  # noqa: ASYNC110 - no event to wait for
                await trio.sleep(0.01)
        await second.connect(address, timeout_s=SOON_S)

    async def test_a_circuit_ends_when_its_time_is_up(
        self, world: World, nursery: trio.Nursery, hidden: Transport, caller: Transport
    ) -> None:
        hasty = world.make(key_of(24), relay=RelayLimits(circuit_s=1))
        await nursery.start(hasty.run)
        await caller.connect(await reserve(hidden, hasty), timeout_s=SOON_S)
        stream = await caller.open_stream(hidden.peer_id, ECHO, timeout_s=SOON_S)
        with trio.fail_after(SOON_S), pytest.raises(StreamClosed):
            await receive_all(stream)
        await wait_gone(caller, hidden.peer_id)
        await wait_gone(hidden, caller.peer_id)

    async def test_a_released_place_is_an_address_no_more(
        self, relay: Transport, hidden: Transport
    ) -> None:
        place = hidden.reserve(relay.addresses[0])
        with trio.fail_after(SOON_S):
            await wait_answered(place)
            held = set(place.addresses)
            place.release()
            await wait_answered(place, has_place=False)
        assert place.addresses == ()
        assert held
        assert not held & set(hidden.announced)

    async def test_a_place_is_lost_with_its_relay_and_kept_when_it_is_back(
        self, world: World, nursery: trio.Nursery, hidden: Transport
    ) -> None:
        life = trio.CancelScope()
        relay = world.make(key_of(24), relay=RelayLimits())

        async def live(*, task_status: trio.TaskStatus[None]) -> None:
            with life:
                await relay.run(task_status=task_status)

        await nursery.start(live)
        place = hidden.reserve(relay.addresses[0])
        with trio.fail_after(SOON_S):
            await wait_answered(place)
            assert place.addresses
            address = relay.addresses[0]
            life.cancel()
            await wait_answered(place, has_place=False)
            assert place.addresses == ()
            assert place.failure
            again = world.make(key_of(24), relay=RelayLimits())
            await nursery.start(again.run)
            if again.addresses[0] == address:  # Else it got another port, and is not found again.
                await wait_answered(place, has_place=True)

    async def test_a_direct_connection_takes_over_from_a_circuit(
        self, relay: Transport, hidden: Transport, caller: Transport
    ) -> None:
        await caller.connect(await reserve(hidden, relay), timeout_s=SOON_S)
        old = await caller.open_stream(hidden.peer_id, ECHO, timeout_s=SOON_S)
        await hidden.connect(caller.addresses[0], timeout_s=SOON_S)
        with trio.fail_after(SOON_S):
            while caller.relay_of(hidden.peer_id):  # noqa: ASYNC110 - no event to wait for
                await trio.sleep(0.01)
        new = await caller.open_stream(hidden.peer_id, ECHO, timeout_s=SOON_S)
        assert (old.is_superseded, new.is_superseded) == (True, False)
        assert new.origin.relay is None
        for stream in (old, new):
            await stream.send_all(b"still here")
            with trio.fail_after(SOON_S):
                assert await receive_exactly(stream, 10) == b"still here"
        assert relay.statistics().circuits == 1
        await old.aclose()
        with trio.fail_after(SOON_S):
            while relay.statistics().circuits:  # noqa: ASYNC110 - no event to wait for
                await trio.sleep(0.01)
        assert hidden.peer_id in caller.connected_peers()
        assert caller.statistics().circuits_upgraded == 1

    async def test_a_relayed_party_is_no_way_to_a_third(
        self, world: World, nursery: trio.Nursery, relay: Transport, caller: Transport
    ) -> None:
        """Relays do not stand behind relays."""
        behind = world.make(key_of(25), relay=RelayLimits(), is_dialable=False)
        await nursery.start(behind.run)
        await caller.connect(await reserve(behind, relay), timeout_s=SOON_S)
        hop = f"{relay.addresses[0]}/p2p-circuit/p2p/{behind.peer_id}/p2p-circuit/p2p/"
        with pytest.raises(AddressInvalid):
            await caller.connect(hop + key_of(26).peer_id, timeout_s=SOON_S)

    async def test_disconnecting_ends_a_circuit_too(
        self, relay: Transport, hidden: Transport, caller: Transport
    ) -> None:
        await caller.connect(await reserve(hidden, relay), timeout_s=SOON_S)
        await caller.disconnect(hidden.peer_id)
        assert caller.connected_peers() == {relay.peer_id}
        with trio.fail_after(SOON_S):
            await hidden.wait_disconnected(caller.peer_id)

    # Gossip.

    @pytest.fixture
    def mesh(self, world: World, nursery: trio.Nursery) -> MakeMesh:
        """A chain of transports, each connected to the next."""

        async def make(count: int) -> list[Transport]:
            transports = [world.make(key_of(50 + number)) for number in range(count)]
            for transport in transports:
                await nursery.start(transport.run)
            for left, right in pairwise(transports):
                await left.connect(right.addresses[0], timeout_s=SOON_S)
            return transports

        return make

    async def test_gossip_reaches_subscribers_over_hops(self, mesh: MakeMesh) -> None:
        first, middle, last = await mesh(3)
        at_first = first.subscribe(TOPIC, lambda data, via: True, queue_max=10)
        middle.subscribe(TOPIC, lambda data, via: True, queue_max=10)
        at_last = last.subscribe(TOPIC, lambda data, via: True, queue_max=10)
        message = await publish_until_heard(first, at_last)
        assert message.topic == TOPIC
        assert message.via == middle.peer_id
        with pytest.raises(trio.WouldBlock):
            at_first.receive_nowait()

    async def test_invalid_gossip_is_neither_delivered_nor_passed_on(self, mesh: MakeMesh) -> None:
        def only_good(data: bytes, via: PeerId) -> bool:
            if data == b"crash":
                raise ValueError("a bug in a validator")
            return data != b"bad"

        first, middle, last = await mesh(3)
        first.subscribe(TOPIC, lambda data, via: True, queue_max=10)
        at_middle = middle.subscribe(TOPIC, only_good, queue_max=100)
        at_last = last.subscribe(TOPIC, lambda data, via: True, queue_max=100)
        await publish_until_heard(first, at_last)
        await first.publish(TOPIC, b"bad")
        await first.publish(TOPIC, b"crash")
        await first.publish(TOPIC, b"good")
        with trio.fail_after(SOON_S):
            for queue in (at_middle, at_last):
                heard = [(await queue.receive()).data]
                while heard[-1] != b"good":
                    heard.append((await queue.receive()).data)
                assert b"bad" not in heard
                assert b"crash" not in heard
        assert middle.statistics().gossip_rejected >= 1

    async def test_publisher_need_not_subscribe(self, mesh: MakeMesh) -> None:
        first, last = await mesh(2)
        at_last = last.subscribe(TOPIC, lambda data, via: True, queue_max=10)
        await publish_until_heard(first, at_last)

    async def test_full_queue_drops_and_counts(self, mesh: MakeMesh) -> None:
        first, last = await mesh(2)
        at_last = last.subscribe(TOPIC, lambda data, via: True, queue_max=2)
        await publish_until_heard(first, at_last)
        with trio.fail_after(SOON_S):
            while last.statistics().gossip_dropped < 3:
                await first.publish(TOPIC, b"more")
                await trio.sleep(0.05)

    async def test_leaving_a_topic_is_closing_its_channel(self, mesh: MakeMesh) -> None:
        first, last = await mesh(2)
        at_last = last.subscribe(TOPIC, lambda data, via: True, queue_max=2)
        await publish_until_heard(first, at_last)
        at_last.close()
        with trio.fail_after(SOON_S):
            for _ in range(5):
                await first.publish(TOPIC, b"nobody hears")
                await trio.sleep(0.05)

    async def test_too_large_gossip_is_our_mistake(self, alice: Transport) -> None:
        with pytest.raises(LocalProtocolError):
            await alice.publish(TOPIC, b"x" * (GOSSIP_BYTES_MAX + 1))


async def wait_answered(place: Reservation, *, has_place: bool | None = None) -> None:
    """Until the relay has granted or refused the place; a certain one of these if it is given."""
    while not place.addresses and not place.failure:  # noqa: ASYNC110 - polled as the rest is
        await trio.sleep(0.01)
    while has_place is not None and bool(place.addresses) != has_place:  # noqa: ASYNC110
        await trio.sleep(0.01)


async def reserve(hidden: Transport, relay: Transport) -> str:
    """A place at the relay, as an address."""
    place = hidden.reserve(relay.addresses[0])
    with trio.fail_after(SOON_S):
        await wait_answered(place)
    assert place.addresses, place.failure
    return place.addresses[0]


async def send_and_end(stream: Stream, data: bytes) -> None:
    await stream.send_all(data)
    await stream.send_eof()


async def publish_until_heard(
    source: Transport, queue: trio.MemoryReceiveChannel[Gossip]
) -> Gossip:
    """Meshes form within seconds; until then a message may go nowhere."""
    with trio.fail_after(20):
        for number in range(1000):
            await source.publish(TOPIC, f"hello {number}".encode())
            with trio.move_on_after(0.25):
                return await queue.receive()
    raise AssertionError("never heard")
