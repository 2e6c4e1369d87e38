"""Strangers on the real transport: other dialects, rubbish, and libraries other than ours."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from libp2p import new_host
from libp2p.abc import IHost, INetStream
from libp2p.crypto.ed25519 import Ed25519PrivateKey
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.host.ping import PingService
from libp2p.peer.id import ID
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from multiaddr import Multiaddr

from protocol.keys import SigningKey
from protocol.net.dial_policy import ALLOW_LOOPBACK
from protocol.net.errors import (
    AddressForbidden,
    AddressInUse,
    AddressInvalid,
    ConnectFailed,
    StreamReset,
)
from protocol.net.libp2p import Libp2pTransport
from protocol.net.libp2p_admission import (
    CONNECTIONS_PER_PEER_MAX,
    FIRST_BYTE_WITHIN_S,
    QUIET_AFTER_S,
    STRANGERS_MAX,
)
from tests.protocol.net.contract import (
    ECHO,
    SOON_S,
    TOPIC,
    echo,
    key_of,
    publish_until_heard,
    receive_all,
    receive_exactly,
)

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
MESHSUB = "/meshsub/1.1.0"


@pytest.fixture
async def ours(nursery: trio.Nursery) -> Libp2pTransport:
    transport = Libp2pTransport(key_of(2), LOOPBACK, policy=ALLOW_LOOPBACK)
    transport.handle(ECHO, echo)
    await nursery.start(transport.run)
    return transport


@pytest.fixture
async def friend(nursery: trio.Nursery, ours: Libp2pTransport) -> Libp2pTransport:
    """A second party of ours, which checks that `ours` still works."""
    friend = Libp2pTransport(key_of(3), LOOPBACK, policy=ALLOW_LOOPBACK)
    await nursery.start(friend.run)
    await friend.connect(ours.addresses[0], timeout_s=SOON_S)
    return friend


async def check_alive(friend: Libp2pTransport, ours: Libp2pTransport) -> None:
    await friend.connect(ours.addresses[0], timeout_s=SOON_S)
    stream = await friend.open_stream(ours.peer_id, ECHO, timeout_s=SOON_S)
    await stream.send_all(b"alive")
    assert await receive_exactly(stream, 5) == b"alive"
    await stream.aclose()


@asynccontextmanager
async def stock_host(key: SigningKey, *, plaintext: bool = False) -> AsyncIterator[IHost]:
    """py-libp2p as it comes, with its own Yamux; Noise, or only plaintext."""
    private = Ed25519PrivateKey.new(key.seed())
    keys = KeyPair(private, private.get_public_key())
    security = (
        {PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys)}
        if plaintext
        else {NOISE: Noise(keys, noise_privkey=create_new_key_pair().private_key)}
    )
    host = new_host(key_pair=keys, sec_opt=security)
    async with host.run(listen_addrs=[Multiaddr(LOOPBACK[0])]):
        yield host
        await host.close()


async def read_exactly(stream: INetStream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        data += await stream.read(size - len(data))
    return data


# Other libp2p programs.


async def test_stock_library_dials_us(ours: Libp2pTransport) -> None:
    async with stock_host(key_of(7)) as host:
        await host.connect(info_from_p2p_addr(Multiaddr(ours.addresses[0])))
        stream = await host.new_stream(ID.from_base58(ours.peer_id), [TProtocol(ECHO)])
        data = bytes(range(256)) * 4000

        async def send() -> None:
            await stream.write(data)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            with trio.fail_after(30):
                assert await read_exactly(stream, len(data)) == data
        [rtt_ms] = await PingService(host).ping(ID.from_base58(ours.peer_id))
        assert rtt_ms < 5000
        assert ours.connected_peers() == {key_of(7).peer_id}


async def test_we_dial_the_stock_library(ours: Libp2pTransport) -> None:
    async with stock_host(key_of(7)) as host:

        async def echo_stock(stream: INetStream) -> None:
            for _ in range(3):
                await stream.write(await stream.read(65536))
            await stream.close()

        host.set_stream_handler(TProtocol("/test/stock/1"), echo_stock)
        address = str(host.get_addrs()[0])
        peer = await ours.connect(address, timeout_s=SOON_S)
        stream = await ours.open_stream(peer, "/test/stock/1", timeout_s=SOON_S)
        for message in (b"one", b"two" * 1000, b"three"):
            await stream.send_all(message)
            assert await receive_exactly(stream, len(message)) == message
        with trio.fail_after(SOON_S):
            assert await receive_all(stream) == b""
        assert await ours.ping(peer, timeout_s=SOON_S) < 5
        await ours.disconnect(peer)


async def test_reset_by_the_stock_library_is_a_reset(ours: Libp2pTransport) -> None:
    async with stock_host(key_of(7)) as host:

        async def drop(stream: INetStream) -> None:
            await stream.read(10)
            await stream.reset()

        host.set_stream_handler(TProtocol("/test/drop/1"), drop)
        peer = await ours.connect(str(host.get_addrs()[0]), timeout_s=SOON_S)
        stream = await ours.open_stream(peer, "/test/drop/1", timeout_s=SOON_S)
        await stream.send_all(b"x")
        with trio.fail_after(SOON_S), pytest.raises(StreamReset):
            await receive_all(stream)
        await ours.disconnect(peer)


async def test_plaintext_dialler_is_refused(ours: Libp2pTransport, friend: Libp2pTransport) -> None:
    async with stock_host(key_of(7), plaintext=True) as host:
        with pytest.raises(BaseLibp2pError):
            await host.connect(info_from_p2p_addr(Multiaddr(ours.addresses[0])))
    assert key_of(7).peer_id not in ours.connected_peers()
    await check_alive(friend, ours)


async def test_plaintext_listener_is_refused(ours: Libp2pTransport) -> None:
    async with stock_host(key_of(7), plaintext=True) as host:
        with pytest.raises(ConnectFailed):
            await ours.connect(str(host.get_addrs()[0]), timeout_s=SOON_S)


# Rubbish.


@pytest.mark.parametrize(
    "rubbish",
    [
        b"",
        b"GET / HTTP/1.1\r\nHost: node\r\n\r\n",
        b"\x13/multistream/1.0.0\n\x07/noise\n" + b"\xff" * 500,
        b"\x13/multistream/1.0.0\n" + b"\x07/noise\n\x00\x00" * 50,
        b"\xff" * 100_000,
    ],
    ids=["nothing", "http", "broken noise", "empty noise", "noise"],
)
async def test_rubbish_on_the_port_is_harmless(
    ours: Libp2pTransport, friend: Libp2pTransport, rubbish: bytes
) -> None:
    port = int(ours.addresses[0].split("/")[4])
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        try:
            await stream.send_all(rubbish)
            await stream.send_eof()
        except trio.BrokenResourceError:
            pass
    await check_alive(friend, ours)


@pytest.mark.parametrize("count", [128, STRANGERS_MAX + 76])
@pytest.mark.parametrize(
    "first_bytes", [b"", b"\x13/multistream/1.0.0\n"], ids=["silent", "stalled"]
)
async def test_strangers_who_never_finish_keep_nobody_out(
    ours: Libp2pTransport, friend: Libp2pTransport, count: int, first_bytes: bytes
) -> None:
    port = int(ours.addresses[0].split("/")[4])
    strangers: list[trio.SocketStream] = []
    try:
        for _ in range(count):
            stranger = await trio.open_tcp_stream("127.0.0.1", port)
            strangers.append(stranger)
            if first_bytes:
                await stranger.send_all(first_bytes)
        # From one address block: those that have been silent for a while give way, and no others.
        await trio.sleep(2 * QUIET_AFTER_S)
        await friend.disconnect(ours.peer_id)
        await check_alive(friend, ours)
    finally:
        for stranger in strangers:
            await trio.aclose_forcefully(stranger)


async def test_a_silent_stranger_is_sent_away(
    ours: Libp2pTransport, friend: Libp2pTransport
) -> None:
    stranger = await trio.open_tcp_stream("127.0.0.1", int(ours.addresses[0].split("/")[4]))
    with trio.fail_after(2 * FIRST_BYTE_WITHIN_S):
        try:
            while await stranger.receive_some():
                pass
        except trio.BrokenResourceError:
            pass
    await stranger.aclose()
    await check_alive(friend, ours)


async def test_a_party_has_few_connections(ours: Libp2pTransport, friend: Libp2pTransport) -> None:
    twins = [
        Libp2pTransport(key_of(40), policy=ALLOW_LOOPBACK)
        for _ in range(CONNECTIONS_PER_PEER_MAX + 3)
    ]
    async with trio.open_nursery() as nursery:
        for twin in twins:
            await nursery.start(twin.run)
            await twin.connect(ours.addresses[0], timeout_s=SOON_S)
        with trio.fail_after(SOON_S):
            while ours.statistics().connections > CONNECTIONS_PER_PEER_MAX + 1:
                await friend.ping(ours.peer_id, timeout_s=SOON_S)
        await check_alive(friend, ours)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("place", ["/ip4/127.0.0.1/tcp/{}", "/dns4/localhost/tcp/{}"])
async def test_an_address_that_is_not_public_is_not_dialled(
    nursery: trio.Nursery, place: str
) -> None:
    calls: list[trio.SocketStream] = []

    async def serve(stream: trio.SocketStream) -> None:
        calls.append(stream)

    listeners: list[trio.SocketListener] = await nursery.start(
        partial(trio.serve_tcp, serve, 0, host="127.0.0.1")
    )
    address = place.format(listeners[0].socket.getsockname()[1]) + f"/p2p/{key_of(9).peer_id}"
    careful = Libp2pTransport(key_of(3))
    await nursery.start(careful.run)
    with pytest.raises(AddressForbidden, match="dial_private"):
        await careful.connect(address, timeout_s=SOON_S)
    assert calls == []
    assert careful.statistics().dials_forbidden == 1
    nursery.cancel_scope.cancel()


async def test_dialling_something_else_fails_clearly(friend: Libp2pTransport) -> None:
    async def greet(stream: trio.SocketStream) -> None:
        await stream.send_all(b"220 mail.example.org ESMTP\r\n" * 100)

    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, greet, 0, host="127.0.0.1")
        )
        port = listeners[0].socket.getsockname()[1]
        with pytest.raises(ConnectFailed):
            await friend.connect(
                f"/ip4/127.0.0.1/tcp/{port}/p2p/{key_of(9).peer_id}", timeout_s=SOON_S
            )
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "rubbish",
    [
        b"\x05\xff\xff\xff\xff\xff",
        b"\xff" * 1000,
        b"\xff\xff\xff\xff\x0f",
        b"\x02\x12\x00" * 20,
        b"\x04\x12\x02\x0a\x00",
    ],
)
async def test_rubbish_gossip_ends_one_stream_only(
    ours: Libp2pTransport, friend: Libp2pTransport, rubbish: bytes
) -> None:
    messages = ours.subscribe(TOPIC, lambda data, via: True, queue_max=10)
    stream = await friend.open_stream(ours.peer_id, MESHSUB, timeout_s=SOON_S)
    await stream.send_all(rubbish)
    await trio.sleep(0.2)
    await check_alive(friend, ours)
    await publish_until_heard(friend, messages)


@pytest.mark.parametrize(
    "protocol_id", ["/ipfs/id/1.0.0", "/ipfs/id/push/1.0.0", "/ipfs/ping/1.0.0"]
)
async def test_rubbish_to_the_librarys_own_protocols_is_harmless(
    ours: Libp2pTransport, friend: Libp2pTransport, protocol_id: str
) -> None:
    for rubbish in (b"", b"\xff" * 100, b"\x05hello"):
        stream = await friend.open_stream(ours.peer_id, protocol_id, timeout_s=SOON_S)
        await stream.send_all(rubbish)
        await stream.send_eof()
        await stream.reset()
    await trio.sleep(0.1)
    await check_alive(friend, ours)


# Our own circumstances.


async def test_taken_port_is_told_by_name(ours: Libp2pTransport) -> None:
    taken = ours.addresses[0].rpartition("/p2p/")[0]
    with pytest.raises(AddressInUse, match=taken):
        await Libp2pTransport(key_of(8), (taken,)).run()


async def test_foreign_interface_is_told_by_name() -> None:
    with pytest.raises(AddressInvalid, match=r"192\.0\.2\.1"):
        await Libp2pTransport(key_of(8), ("/ip4/192.0.2.1/tcp/0",)).run()


async def test_listening_everywhere_announces_real_addresses(nursery: trio.Nursery) -> None:
    transport = Libp2pTransport(key_of(8), ("/ip4/0.0.0.0/tcp/0",))
    await nursery.start(transport.run)
    assert transport.addresses
    assert not any("0.0.0.0" in address for address in transport.addresses)
    assert any("/ip4/127.0.0.1/" in address for address in transport.addresses)


async def test_announced_addresses_replace_those_we_listen_at(nursery: trio.Nursery) -> None:
    announce = ("/dns4/node.example.org/tcp/4001",)
    transport = Libp2pTransport(key_of(8), LOOPBACK, announce=announce, policy=ALLOW_LOOPBACK)
    await nursery.start(transport.run)
    assert transport.addresses == (f"{announce[0]}/p2p/{key_of(8).peer_id}",)


async def test_stopping_frees_the_port_and_starting_again_works(
    nursery: trio.Nursery, friend: Libp2pTransport
) -> None:
    place = LOOPBACK
    for _ in range(3):
        with trio.CancelScope() as life:
            async with trio.open_nursery() as own:
                transport = Libp2pTransport(key_of(8), place)
                transport.handle(ECHO, echo)
                await own.start(transport.run)
                place = (transport.addresses[0].rpartition("/p2p/")[0],)
                await check_alive(friend, transport)
                life.cancel()
        with trio.fail_after(SOON_S):
            while friend.connected_peers() & {key_of(8).peer_id}:  # noqa: ASYNC110
                await trio.sleep(0.01)
    probe = socket.socket()
    with probe:
        port = int(place[0].rpartition("/")[2])
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


async def test_the_library_keeps_its_chatter_to_itself(
    ours: Libp2pTransport, friend: Libp2pTransport, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.clear()
    with pytest.raises(ConnectFailed):
        await friend.connect(f"/ip4/127.0.0.1/tcp/1/p2p/{key_of(9).peer_id}", timeout_s=SOON_S)
    await friend.disconnect(ours.peer_id)
    await check_alive(friend, ours)
    assert [record for record in caplog.records if record.name.startswith("libp2p")] == []


async def test_second_address_that_is_taken_frees_the_first(ours: Libp2pTransport) -> None:
    taken = ours.addresses[0].rpartition("/p2p/")[0]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free = f"/ip4/127.0.0.1/tcp/{probe.getsockname()[1]}"
    with pytest.raises(AddressInUse):
        await Libp2pTransport(key_of(8), (free, taken)).run()
    with trio.move_on_after(0.1):
        await Libp2pTransport(key_of(8), (free,)).run()


async def test_cancelled_sender_does_not_cost_the_connection(
    ours: Libp2pTransport, friend: Libp2pTransport
) -> None:
    stream = await friend.open_stream(ours.peer_id, ECHO, timeout_s=SOON_S)
    for _ in range(20):
        with trio.move_on_after(0.002):
            while True:
                await stream.send_all(b"x" * 500_000)
    await check_alive(friend, ours)


async def test_topic_joined_while_a_neighbour_arrives_is_told_to_it(
    nursery: trio.Nursery, ours: Libp2pTransport
) -> None:
    # py-libp2p forgets a topic that is joined between its greeting and the registration of the
    # neighbour; without our second greeting about one run in four of this fails.
    for number in range(8):
        topic = f"/test/topic/{number}"
        other = Libp2pTransport(key_of(30 + number), LOOPBACK, policy=ALLOW_LOOPBACK)
        await nursery.start(other.run)
        await other.connect(ours.addresses[0], timeout_s=SOON_S)
        messages = ours.subscribe(topic, lambda data, via: True, queue_max=10)
        with trio.fail_after(20):
            while True:
                await other.publish(topic, b"hello")
                with trio.move_on_after(0.2):
                    await messages.receive()
                    break


async def test_both_may_dial_each_other_at_once(nursery: trio.Nursery) -> None:
    left, right = (
        Libp2pTransport(key_of(21), LOOPBACK, policy=ALLOW_LOOPBACK),
        Libp2pTransport(key_of(22), LOOPBACK, policy=ALLOW_LOOPBACK),
    )
    for transport in (left, right):
        transport.handle(ECHO, echo)
        await nursery.start(transport.run)
    async with trio.open_nursery() as dials:
        dials.start_soon(_connect, left, right)
        dials.start_soon(_connect, right, left)
    await check_alive(left, right)
    await check_alive(right, left)


async def _connect(source: Libp2pTransport, target: Libp2pTransport) -> None:
    await source.connect(target.addresses[0], timeout_s=SOON_S)
