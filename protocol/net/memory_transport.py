"""One party on a `MemoryNetwork`: whom it is connected to, its streams, and how it dies."""

from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

import trio
from trio.lowlevel import ParkingLot

from protocol.errors import LocalProtocolError
from protocol.ids import PeerId
from protocol.net.addresses import parse_port, split_circuit, split_peer_id
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
from protocol.net.memory_circuits import MemoryCircuits
from protocol.net.memory_connection import MemoryConnection, OpenAnswer
from protocol.net.memory_gossip import MemoryGossip
from protocol.net.memory_wire import Agenda, MemoryStream, Wire
from protocol.net.relay_places import RelayLimits
from protocol.net.reservations import KeptReservation
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

    def __init__(
        self,
        network: "MemoryNetwork",
        peer_id: PeerId,
        port: int,
        *,
        relay: RelayLimits | None = None,
        is_dialable: bool = True,
    ) -> None:
        self.network = network
        self.is_dialable = is_dialable
        self.agenda = Agenda(network.numbers)
        self.buffers = Buffers()
        self._peer_id = peer_id
        self._port = port
        self._seen_port = port
        self._nursery: trio.Nursery | None = None
        self._handlers: dict[str, Handler] = {}
        self._connections: dict[PeerId, MemoryConnection] = {}
        # Through relays, with streams that were open when a direct connection took over.
        self._superseded: dict[MemoryConnection, None] = {}
        self._lost = ParkingLot()
        self._dials = Dials()
        self._gossip = MemoryGossip(network, peer_id, self._connections)
        self._counts: Counter[str] = Counter()
        self._circuits = MemoryCircuits(self, relay)

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        found = f"/memory/{self._seen_port}/p2p/{self._peer_id}"
        return (found,) if self._nursery is not None else ()

    @property
    def announced(self) -> tuple[str, ...]:
        direct = self.addresses if self.is_dialable else ()
        return direct + self._circuits.addresses

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
        circuit = split_circuit(address)
        relay_address, (port, peer) = address, (0, self._peer_id)
        if circuit is None:
            port, peer = parse_memory_address(address)
        else:
            relay_address, peer = circuit
            parse_memory_address(relay_address)
        self._check_running()
        if peer == self._peer_id:
            raise ConnectFailed(f"{address} is our own address")

        def is_connected() -> bool:
            connection = self._connections.get(peer)
            return connection is not None and (circuit is not None or connection.relay is None)

        async def dial() -> None:
            if circuit is None:
                self.join(await self._find(port, peer))
            else:
                await self._circuits.dial(relay_address, peer)

        with trio.move_on_after(timeout_s):
            await self._dials.ensure(address, is_connected, dial)
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
        connection = self._connections.get(peer)
        return MEMORY_HOST if connection is not None and connection.relay is None else ""

    def refresh_addresses(self) -> bool:
        was, self._seen_port = self._seen_port, self._port
        return was != self._port

    def move(self, port: int) -> None:
        """The machine is on another network now: it listens elsewhere, and nothing reaches it
        where it was. It learns of that when it refreshes its addresses."""
        self.network.forget(self._port, self)
        self._port = port
        self.network.listen(port, self)
        for connection in self._all_connections():
            self.drop(connection, "the machine left its network")

    def relay_of(self, peer: PeerId) -> PeerId | None:
        connection = self._connections.get(peer)
        return None if connection is None else connection.relay

    def reserve(
        self, relay_address: str, on_change: Callable[[], None] = lambda: None
    ) -> KeptReservation:
        parse_memory_address(relay_address)
        if self._nursery is None:
            raise ConnectFailed("the transport is not running")
        return self._circuits.keep(relay_address, on_change, self._nursery)

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
        for connection in self._all_connections():
            if connection.other.peer_id == peer:
                self.drop(connection, "we disconnected")

    async def wait_disconnected(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        while peer in self._connections:
            await self._lost.park()

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
            **self._circuits.statistics(),
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
        for connection in self._all_connections():
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
        connection.circuit.cancel()
        self._superseded.pop(connection, None)
        if self._connections.get(peer) is connection:
            del self._connections[peer]
            self._circuits.forget(peer)
            self._lost.unpark_all()

    def give_up(self, connection: MemoryConnection) -> None:
        """The peer has been silent for too long."""
        self._counts["peers_timed_out"] += 1
        self.network.counts["connections_timed_out"] += 1
        self.lose(connection, "the peer fell silent")

    def refresh_conditions(self) -> None:
        for connection in self._all_connections():
            connection.refresh_conditions()

    def refresh_silence(self) -> None:
        for connection in self._all_connections():
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
        if other is None or not other.is_dialable:
            raise ConnectFailed(f"no peer listens at /memory/{port}")
        if other.peer_id != peer:
            raise PeerMismatch(f"/memory/{port} is {other.peer_id}, not {peer}")
        return other

    def join(self, other: "MemoryTransport", relay: PeerId | None = None) -> MemoryConnection:
        """Connect with another, directly or through a relay, unless we are so already."""
        known = self._connections.get(other.peer_id)
        if known is not None and known.relay == relay and known.other is other:
            return known
        ours, theirs = MemoryConnection(self, other, relay), MemoryConnection(other, self, relay)
        ours.mate, theirs.mate = theirs, ours
        for connection in (ours, theirs):
            connection.owner.take(connection)
        return ours

    def connection_through(self, relay: PeerId, peer: PeerId) -> MemoryConnection | None:
        """The connection that was just made; None if it has ended already."""
        for connection in self._all_connections():
            if connection.other.peer_id == peer and connection.relay == relay:
                return connection
        return None

    def start_soon(self, task: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """A task that ends with this transport; nothing happens if that is over."""
        if self._nursery is not None:
            self._nursery.start_soon(task, *arguments)

    def take(self, connection: MemoryConnection) -> None:
        """A connection is made, by us or by its other side. Latest wins; but a direct one lets the
        streams finish that run through a relay."""
        peer = connection.other.peer_id
        known = self._connections.get(peer)
        if known is not None and known.is_whole and known.relay is None and connection.relay:
            # Both ways were tried at once.
            self._supersede(connection)
            return
        self._connections[peer] = connection
        if known is not None and known.relay is not None and connection.relay is None:
            self._counts["circuits_upgraded"] += 1
            self._supersede(known)
        elif known is not None:
            # Its news is still under way, or the peer's key runs twice.
            self.lose(known, "the peer connected anew")

    def _supersede(self, connection: MemoryConnection) -> None:
        self._superseded[connection] = None
        connection.is_superseded = True
        connection.end_if_useless()

    def _all_connections(self) -> list[MemoryConnection]:
        return [*self._connections.values(), *self._superseded]

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
