"""One party on a `MemoryNetwork`: whom it is connected to, its streams, and how it dies."""

from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

import trio

from protocol.errors import LocalProtocolError
from protocol.ids import PeerId
from protocol.net.addresses import parse_port, split_peer_id
from protocol.net.buffers import Buffers
from protocol.net.dials import Dials
from protocol.net.errors import (
    AddressInvalid,
    Backpressure,
    ConnectFailed,
    NetError,
    NetTimeout,
    PeerMismatch,
    ProtocolUnsupported,
)
from protocol.net.memory_connection import MemoryConnection, OpenAnswer
from protocol.net.memory_gossip import MemoryGossip
from protocol.net.memory_wire import Agenda, MemoryStream, Wire
from protocol.net.serve import boundary
from protocol.net.transport import (
    GOSSIP_BYTES_MAX,
    STREAMS_PER_CONNECTION_MAX,
    Gossip,
    Handler,
    TransportStatistics,
    Validator,
)

if TYPE_CHECKING:
    from protocol.net.memory import MemoryNetwork

# TCP's handshake and Noise's: what must cross before a connection stands.
CONNECT_ROUND_TRIPS = 2
# All parties of a network in memory are on one host.
MEMORY_HOST = "memory"


class MemoryTransport:
    """One party's presence on a MemoryNetwork."""

    def __init__(self, network: "MemoryNetwork", peer_id: PeerId, port: int) -> None:
        self.network = network
        self.agenda = Agenda(network.numbers)
        self.buffers = Buffers()
        self._peer_id = peer_id
        self._port = port
        self._seen_port = port
        self._nursery: trio.Nursery | None = None
        self._handlers: dict[str, Handler] = {}
        self._connections: dict[PeerId, MemoryConnection] = {}
        self._dials = Dials()
        self._gossip = MemoryGossip(network, peer_id, self._connections)
        self._counts: Counter[str] = Counter()

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        found = f"/memory/{self._seen_port}/p2p/{self._peer_id}"
        return (found,) if self._nursery is not None else ()

    @property
    def announced(self) -> tuple[str, ...]:
        return self.addresses

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        await trio.lowlevel.checkpoint()
        self.network.listen(self._port, self)
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self.agenda.run)
                task_status.started()
            await trio.sleep_forever()  # Killed: nothing more happens here.
        finally:
            self.die()

    def handle(self, protocol_id: str, handler: Handler) -> None:
        assert protocol_id not in self._handlers, f"{protocol_id} has a handler"
        self._handlers[protocol_id] = handler

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        port, peer = parse_memory_address(address)
        self._check_running()
        if peer == self._peer_id:
            raise ConnectFailed(f"{address} is our own address")
        with trio.move_on_after(timeout_s):
            await self._dials.ensure(
                address, lambda: peer in self._connections, partial(self._dial, port, peer)
            )
            return peer
        raise NetTimeout(f"{address} did not answer within {timeout_s:g} s")

    async def probe(self, address: str, *, timeout_s: float) -> None:
        port, peer = parse_memory_address(address)
        self._check_running()
        with trio.move_on_after(timeout_s):
            await self._find(port, peer)
            return
        raise NetTimeout(f"{address} did not answer within {timeout_s:g} s")

    def observed_host(self, peer: PeerId) -> str:
        return MEMORY_HOST if peer in self._connections else ""

    def refresh_addresses(self) -> bool:
        was, self._seen_port = self._seen_port, self._port
        return was != self._port

    def move(self, port: int) -> None:
        """The machine is on another network now: it listens elsewhere, and nothing reaches it
        where it was. It learns of that when it refreshes its addresses."""
        self.network.forget(self._port, self)
        self._port = port
        self.network.listen(port, self)
        for connection in list(self._connections.values()):
            self.drop(connection, "the machine left its network")

    async def open_stream(
        self, peer: PeerId, protocol_id: str, *, timeout_s: float
    ) -> MemoryStream:
        connection = self._connection(peer)
        if len(connection.streams) >= STREAMS_PER_CONNECTION_MAX:
            raise Backpressure(f"{len(connection.streams)} streams to {peer} are open")
        stream = connection.new_stream()
        answer = OpenAnswer(stream)
        connection.wire.put(
            lambda: connection.other.on_open(connection, stream, protocol_id, answer)
        )
        try:
            with trio.fail_after(timeout_s):
                await answer.wait()
        except trio.TooSlowError:
            await stream.reset()
            raise NetTimeout(f"{peer} opened no stream within {timeout_s:g} s") from None
        except (NetError, trio.Cancelled):
            connection.streams.pop(stream, None)
            raise
        self._counts["streams_opened"] += 1
        return stream

    async def disconnect(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        connection = self._connections.get(peer)
        if connection is not None:
            self.drop(connection, "we disconnected")

    def connected_peers(self) -> frozenset[PeerId]:
        return frozenset(self._connections)

    async def ping(self, peer: PeerId, *, timeout_s: float) -> float:
        connection = self._connection(peer)
        started_at = trio.current_time()
        pong = trio.Event()
        connection.wire.put(lambda: connection.other.on_ping(connection, pong))
        with trio.move_on_after(timeout_s):
            await pong.wait()
            return trio.current_time() - started_at
        raise NetTimeout(f"{peer} did not answer a ping within {timeout_s:g} s")

    def subscribe(
        self, topic: str, validate: Validator, *, queue_max: int
    ) -> trio.MemoryReceiveChannel[Gossip]:
        return self._gossip.topics.subscribe(topic, validate, queue_max=queue_max)

    async def publish(self, topic: str, data: bytes) -> None:
        if len(data) > GOSSIP_BYTES_MAX:
            raise LocalProtocolError(f"gossip of {len(data)} bytes is over the limit")
        await trio.lowlevel.checkpoint()
        self._check_running()
        self._gossip.publish(topic, data)

    def statistics(self) -> TransportStatistics:
        return TransportStatistics(
            connections=len(self._connections),
            gossip_received=self._gossip.topics.received,
            gossip_rejected=self._gossip.topics.rejected,
            gossip_dropped=self._gossip.topics.dropped,
            buffered_bytes=self.buffers.held_bytes,
            buffers_dropped=self.buffers.dropped,
            **self._counts,
        )

    # For the network and for other transports.

    @property
    def is_running(self) -> bool:
        return self._nursery is not None

    def has_joined(self, topic: str) -> bool:
        return topic in self._gossip.topics

    def die(self) -> None:
        """Break every connection, as the kernel does for a process that is gone."""
        nursery, self._nursery = self._nursery, None
        self.network.forget(self._port, self)
        for connection in list(self._connections.values()):
            self.drop(connection, "the process is gone")
        if nursery is not None:
            nursery.cancel_scope.cancel()

    def drop(self, connection: MemoryConnection, reason: str) -> None:
        """Close our side at once; the other side notices when the news arrives."""
        mate = connection.mate
        self.lose(connection, reason)
        if mate is not None:
            news = partial(mate.owner.lose, mate, "the peer closed the connection")
            connection.wire.put(news, surely=True)

    def lose(self, connection: MemoryConnection, reason: str) -> None:
        """Our side of a connection ends; its streams with it."""
        peer = connection.other.peer_id
        connection.mate = None
        connection.memory.close()
        for stream in list(connection.streams):
            stream.on_connection_lost(f"{peer}: {reason}")
        if self._connections.get(peer) is connection:
            del self._connections[peer]

    def give_up(self, connection: MemoryConnection) -> None:
        """The peer has been silent for too long."""
        self._counts["peers_timed_out"] += 1
        self.network.counts["connections_timed_out"] += 1
        self.lose(connection, "the peer fell silent")

    def refresh_conditions(self) -> None:
        for peer, connection in self._connections.items():
            connection.wire.conditions = self.network.conditions(self._peer_id, peer)

    def refresh_silence(self) -> None:
        for connection in list(self._connections.values()):
            connection.refresh_silence()

    def on_open(
        self, theirs: MemoryConnection, stream: MemoryStream, protocol_id: str, answer: OpenAnswer
    ) -> None:
        """The other side of `theirs` opens a stream to us."""
        connection = theirs.mate
        if connection is None or self._nursery is None:
            return
        handler = self._handlers.get(protocol_id)
        if handler is None or len(connection.streams) >= STREAMS_PER_CONNECTION_MAX:
            reason = f"{self._peer_id} does not speak {protocol_id}"
            connection.wire.put(partial(answer.refuse, ProtocolUnsupported(reason)))
            return
        ours = connection.new_stream()
        ours.mate, stream.mate = stream, ours
        self._counts["streams_accepted"] += 1
        connection.wire.put(answer.accept)
        self._nursery.start_soon(self._serve, handler, protocol_id, ours)

    def on_ping(self, theirs: MemoryConnection, pong: trio.Event) -> None:
        if theirs.mate is not None:
            theirs.mate.wire.put(pong.set)

    def on_gossip(self, number: int, topic: str, data: bytes, via: PeerId) -> None:
        if self.is_running:
            self._gossip.on_arrival(number, topic, data, via)

    # Connections.

    async def _dial(self, port: int, peer: PeerId) -> None:
        other = await self._find(port, peer)
        if peer not in self._connections:
            self._join(other)

    async def _find(self, port: int, peer: PeerId) -> "MemoryTransport":
        """Who listens there, after the time that a handshake takes. Raises ConnectFailed,
        PeerMismatch."""
        wire = Wire(
            self.network.rng,
            self.network.conditions(self._peer_id, peer),
            self.agenda,
            lost=lambda: None,
        )
        for _ in range(2 * CONNECT_ROUND_TRIPS):
            await trio.sleep(wire.delay_s())
        while (
            self.network.swallows(port)
            or self.network.is_silent(self._peer_id, peer)
            or self.network.is_silent(peer, self._peer_id)
        ):
            await self.network.rearranged.park()
        other = self.network.at(port)
        if other is None:
            raise ConnectFailed(f"no peer listens at /memory/{port}")
        if other.peer_id != peer:
            raise PeerMismatch(f"/memory/{port} is {other.peer_id}, not {peer}")
        return other

    def _join(self, other: "MemoryTransport") -> None:
        ours, theirs = MemoryConnection(self, other), MemoryConnection(other, self)
        ours.mate, theirs.mate = theirs, ours
        for connection in (ours, theirs):
            owner, peer = connection.owner, connection.other.peer_id
            stale = owner._connections.get(peer)
            if stale is not None:
                # Its news is still under way, or the peer's key runs twice. Latest wins.
                owner.lose(stale, "the peer connected anew")
            owner._connections[peer] = connection

    def _connection(self, peer: PeerId) -> MemoryConnection:
        connection = self._connections.get(peer)
        if connection is None:
            raise ConnectFailed(f"{peer} is not connected")
        return connection

    def _check_running(self) -> None:
        if not self.is_running:
            raise ConnectFailed("the transport is not running")

    async def _serve(self, handler: Handler, protocol_id: str, stream: MemoryStream) -> None:
        guard = boundary(handler, protocol_id)
        await guard.run(stream)
        self._counts["handlers_failed"] += guard.failures


def parse_memory_address(address: str) -> tuple[int, PeerId]:
    """/memory/PORT/p2p/ID. Raises AddressInvalid."""
    place, peer = split_peer_id(address)
    kind, separator, port = place.removeprefix("/").partition("/")
    if kind != "memory" or not separator:
        raise AddressInvalid(f"{address!r} is not /memory/PORT/p2p/ID")
    return parse_port(port, address), peer
