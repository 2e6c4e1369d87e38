"""What a relay can read, and what a bad one can do."""

from collections.abc import Awaitable, Callable

import pytest
import trio

from protocol.ids import PeerId
from protocol.net.addresses import circuit_address
from protocol.net.circuit_messages import (
    HOP_PROTOCOL,
    STOP_PROTOCOL,
    CircuitStatus,
    GrantedPlace,
    HopKind,
    HopMessage,
    StopKind,
    StopMessage,
    receive_message,
    send_message,
)
from protocol.net.dial_policy import ALLOW_LOOPBACK
from protocol.net.errors import ConnectFailed, NetTimeout, PeerMismatch, StreamClosed
from protocol.net.libp2p import Libp2pTransport
from protocol.net.relay_places import RelayLimits
from protocol.net.transport import Stream
from tests.protocol.net.contract import ECHO, SOON_S, echo, key_of, receive_exactly, reserve

LOOPBACK = ("/ip4/127.0.0.1/tcp/0",)
PROMPT = b"the quick brown fox jumps over the lazy dog, which is meant for one reader"
FAR_FUTURE_S = 4_000_000_000

# What a relay makes of one piece that it passes on; None drops it.
Tamper = Callable[[bytes], bytes | None]


class BadRelay:
    """Grants every place, and does to what it carries as it is told."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.transport = Libp2pTransport(key_of(20), LOOPBACK, policy=ALLOW_LOOPBACK)
        self.transport.handle(HOP_PROTOCOL, self._handle)
        self.tamper: Tamper = lambda piece: piece
        self.carried = b""
        # Where it leads callers, and whom it names to the callee, if not the truth.
        self.leads_to: PeerId | None = None
        self.names: PeerId | None = None
        self.status = CircuitStatus.OK
        self._nursery = nursery

    async def _handle(self, stream: Stream) -> None:
        message = HopMessage.parse(await receive_message(stream))
        if message.kind == HopKind.RESERVE:
            place = GrantedPlace(FAR_FUTURE_S)
            await self._answer(stream, HopMessage(HopKind.STATUS, place=place, status=100))
            return
        if self.status != CircuitStatus.OK:
            await self._answer(stream, HopMessage(HopKind.STATUS, status=self.status))
            return
        assert message.peer is not None
        target = await self.transport.open_stream(
            self.leads_to or message.peer, STOP_PROTOCOL, timeout_s=SOON_S
        )
        call = StopMessage(StopKind.CONNECT, peer=self.names or stream.peer)
        await send_message(target, call.encode())
        await receive_message(target)
        await self._answer(stream, HopMessage(HopKind.STATUS, status=100))
        async with trio.open_nursery() as both:
            both.start_soon(self._carry, stream, target)
            both.start_soon(self._carry, target, stream)

    async def _answer(self, stream: Stream, answer: HopMessage) -> None:
        await send_message(stream, answer.encode())

    async def _carry(self, source: Stream, target: Stream) -> None:
        while data := await source.receive_some():
            self.carried += data
            passed_on = self.tamper(data)
            if passed_on:
                await target.send_all(passed_on)
        await target.send_eof()


@pytest.fixture
async def relay(nursery: trio.Nursery) -> BadRelay:
    relay = BadRelay(nursery)
    await nursery.start(relay.transport.run)
    return relay


@pytest.fixture
async def node(nursery: trio.Nursery) -> Libp2pTransport:
    node = Libp2pTransport(key_of(21), policy=ALLOW_LOOPBACK, does_without_relays=False)
    node.handle(ECHO, echo)
    await nursery.start(node.run)
    return node


@pytest.fixture
async def buyer(nursery: trio.Nursery) -> Libp2pTransport:
    buyer = Libp2pTransport(key_of(22), policy=ALLOW_LOOPBACK)
    await nursery.start(buyer.run)
    return buyer


Talk = Callable[[], Awaitable[Stream]]


@pytest.fixture
async def talk(relay: BadRelay, node: Libp2pTransport, buyer: Libp2pTransport) -> Talk:
    """Says the prompt to the node through the relay, and hears it again."""

    async def talk() -> Stream:
        await buyer.connect(await reserve(node, relay.transport), timeout_s=SOON_S)
        stream = await buyer.open_stream(node.peer_id, ECHO, timeout_s=SOON_S)
        await stream.send_all(PROMPT)
        assert await receive_exactly(stream, len(PROMPT)) == PROMPT
        return stream

    return talk


async def test_a_relay_reads_nothing_of_what_it_carries(relay: BadRelay, talk: Talk) -> None:
    await talk()
    assert len(relay.carried) > 2 * len(PROMPT)
    for start in range(0, len(PROMPT) - 8):
        assert PROMPT[start : start + 8] not in relay.carried
    # Not even which protocol is spoken.
    assert ECHO.encode() not in relay.carried


async def test_a_changed_byte_ends_the_connection(
    relay: BadRelay, talk: Talk, node: Libp2pTransport, buyer: Libp2pTransport
) -> None:
    stream = await talk()
    relay.tamper = lambda piece: piece[:-1] + bytes([piece[-1] ^ 1])
    await stream.send_all(PROMPT)
    with trio.fail_after(SOON_S), pytest.raises(StreamClosed):
        await receive_exactly(stream, len(PROMPT))
    with trio.fail_after(SOON_S):
        await buyer.wait_disconnected(node.peer_id)
    # The next circuit is as good as new.
    relay.tamper = lambda piece: piece
    await talk()


async def test_a_relay_that_drops_everything_is_noticed(
    relay: BadRelay, talk: Talk, node: Libp2pTransport, buyer: Libp2pTransport
) -> None:
    stream = await talk()
    relay.tamper = lambda _: None
    await stream.send_all(PROMPT)
    with trio.fail_after(2 * SOON_S):
        with pytest.raises(StreamClosed):
            await receive_exactly(stream, len(PROMPT))
        await node.wait_disconnected(buyer.peer_id)


async def test_a_relay_that_refuses_is_a_typed_failure(
    relay: BadRelay, node: Libp2pTransport, buyer: Libp2pTransport
) -> None:
    relay.status = CircuitStatus.PERMISSION_DENIED
    with pytest.raises(ConnectFailed, match="permission_denied"):
        await buyer.connect(await reserve(node, relay.transport), timeout_s=SOON_S)


async def test_a_relay_that_leads_to_another_party_is_found_out(
    relay: BadRelay, node: Libp2pTransport, buyer: Libp2pTransport, nursery: trio.Nursery
) -> None:
    impostor = Libp2pTransport(key_of(23), policy=ALLOW_LOOPBACK)
    await nursery.start(impostor.run)
    await reserve(impostor, relay.transport)
    relay.leads_to = impostor.peer_id
    with pytest.raises(PeerMismatch):
        await buyer.connect(await reserve(node, relay.transport), timeout_s=SOON_S)
    assert node.peer_id not in buyer.connected_peers()


async def test_a_caller_is_not_who_the_relay_says(
    relay: BadRelay, node: Libp2pTransport, buyer: Libp2pTransport
) -> None:
    relay.names = key_of(99).peer_id
    await buyer.connect(await reserve(node, relay.transport), timeout_s=SOON_S)
    with trio.fail_after(SOON_S):
        await buyer.wait_disconnected(node.peer_id)
    assert node.connected_peers() == {relay.transport.peer_id}


async def test_only_a_relay_with_our_place_may_bring_calls(
    relay: BadRelay, node: Libp2pTransport, buyer: Libp2pTransport
) -> None:
    await node.connect(relay.transport.addresses[0], timeout_s=SOON_S)
    address = circuit_address(relay.transport.addresses[0], node.peer_id)
    with pytest.raises((ConnectFailed, NetTimeout)):
        await buyer.connect(address, timeout_s=3)
    assert node.connected_peers() == {relay.transport.peer_id}


@pytest.fixture
async def honest(nursery: trio.Nursery) -> Libp2pTransport:
    limits = RelayLimits(circuit_bytes_max=200_000)
    honest = Libp2pTransport(key_of(24), LOOPBACK, policy=ALLOW_LOOPBACK, relay=limits)
    await nursery.start(honest.run)
    return honest


async def test_callers_move_to_another_circuit_before_one_is_used_up(
    honest: Libp2pTransport, node: Libp2pTransport, buyer: Libp2pTransport
) -> None:
    """A circuit carries 200 kB; the jobs together much more, and none is cut."""
    address = await reserve(node, honest)
    for _ in range(20):
        await buyer.connect(address, timeout_s=SOON_S)
        stream = await buyer.open_stream(node.peer_id, ECHO, timeout_s=SOON_S)
        await stream.send_all(bytes(30_000))
        assert await receive_exactly(stream, 30_000) == bytes(30_000)
        await stream.aclose()
    assert honest.statistics().relayed_bytes > 1_000_000


async def test_a_circuit_that_is_used_up_breaks(
    honest: Libp2pTransport, node: Libp2pTransport, buyer: Libp2pTransport
) -> None:
    await buyer.connect(await reserve(node, honest), timeout_s=SOON_S)
    stream = await buyer.open_stream(node.peer_id, ECHO, timeout_s=SOON_S)

    async def pour() -> None:
        while True:
            await stream.send_all(bytes(10_000))
            await receive_exactly(stream, 10_000)

    with trio.fail_after(SOON_S), pytest.raises(StreamClosed):
        await pour()
    assert honest.statistics().relayed_bytes <= 400_000


async def test_a_relay_does_not_buffer_what_is_not_read(
    nursery: trio.Nursery, buyer: Libp2pTransport
) -> None:
    relay = Libp2pTransport(key_of(25), LOOPBACK, policy=ALLOW_LOOPBACK, relay=RelayLimits())
    await nursery.start(relay.run)
    sink = Libp2pTransport(key_of(26), policy=ALLOW_LOOPBACK, does_without_relays=False)

    async def never_read(_: Stream) -> None:
        await trio.sleep_forever()

    sink.handle(ECHO, never_read)
    await nursery.start(sink.run)
    await buyer.connect(await reserve(sink, relay), timeout_s=SOON_S)
    stream = await buyer.open_stream(sink.peer_id, ECHO, timeout_s=SOON_S)
    with trio.move_on_after(1.0) as too_soon:
        await stream.send_all(bytes(20_000_000))
    assert too_soon.cancelled_caught
    assert relay.statistics().buffered_bytes < 2_000_000
