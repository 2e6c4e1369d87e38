"""One party on a `MemoryNetwork`: its connections, streams, gossip, and how it dies."""

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
from protocol.net.gossip import Topics
from protocol.net.memory_wire import Agenda, MemoryStream, Wire
from protocol.net.serve import boundary
from protocol.net.transport import (
    GOSSIP_BYTES_MAX,
    STREAMS_PER_CONNECTION_MAX,
    Gossip,
    Handler,
    PeerEvent,
    TransportStatistics,
    Validator,
)
from protocol.net.watchers import Watchers

if TYPE_CHECKING:
    from protocol.net.memory import MemoryNetwork

# TCP's handshake and Noise's: what must cross before a connection stands.
CONNECT_ROUND_TRIPS = 2
# A second copy of a gossiped message takes up to so many times as long as the first: what was
# published since overtakes it.
DETOUR_MAX = 10
# A message that comes round again after this many others would be delivered again.
SEEN_MAX = 8192


class _Connection:
    """One side of a connection between two transports."""

    def __init__(self, owner: "MemoryTransport", other: "MemoryTransport") -> None:
        self.owner = owner
        self.other = other
        self.mate: _Connection | None = None
        self.streams: dict[MemoryStream, None] = {}
        network = owner.network
        self.wire = Wire(
            network.rng,
            network.conditions(owner.peer_id, other.peer_id),
            other.agenda,
            lost=partial(owner.drop, self, "too many packets were lost"),
        )
        self.memory = owner.buffers.open(
            other.peer_id, partial(owner.drop, self, "it held too much")
        )
        self._silences = 0
        self.refresh_silence()

    def new_stream(self) -> MemoryStream:
        stream = MemoryStream(self.other.peer_id, self.wire, self.memory, self.streams.pop)
        self.streams[stream] = None
        return stream

    def refresh_silence(self) -> None:
        """Fall silent or speak again, as the partition is now."""
        silent = self.owner.network.is_silent(self.owner.peer_id, self.other.peer_id)
        if silent and not self.wire.is_silent:
            self.owner.network.counts["wires_silenced"] += 1
            self.wire.silence()
            self._silences += 1
            self.owner.agenda.add(
                trio.current_time() + self.owner.network.liveness_s,
                partial(self._give_up, self._silences),
            )
        elif not silent and self.wire.is_silent:
            self.wire.resume()
            if self.mate is not None and self.mate.mate is None:
                # The other side ended while it could not say so. As on TCP, whatever is sent to it
                # now comes back as a reset.
                self.owner.agenda.add(
                    trio.current_time() + 2 * self.wire.delay_s(),
                    partial(self.owner.lose, self, "the peer had closed the connection"),
                )

    def _give_up(self, silence: int) -> None:
        if self.wire.is_silent and self._silences == silence:
            mate = self.mate
            self.owner.give_up(self)
            # Its pings arrive and are not answered. If it is silent itself, it has its own watch.
            if mate is not None and not mate.wire.is_silent:
                mate.owner.give_up(mate)


class MemoryTransport:
    """One party's presence on a MemoryNetwork."""

    def __init__(self, network: "MemoryNetwork", peer_id: PeerId, port: int) -> None:
        self.network = network
        self.agenda = Agenda(network.numbers)
        self.buffers = Buffers()
        self._peer_id = peer_id
        self._port = port
        self._address = f"/memory/{port}/p2p/{peer_id}"
        self._nursery: trio.Nursery | None = None
        self._handlers: dict[str, Handler] = {}
        self._connections: dict[PeerId, _Connection] = {}
        self._dials = Dials()
        self._watchers = Watchers()
        self._topics = Topics()
        self._seen: dict[int, None] = {}
        self._newest: dict[str, int] = {}
        self._counts: Counter[str] = Counter()

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return (self._address,) if self._nursery is not None else ()

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
                peer, lambda: peer in self._connections, partial(self._dial, port, peer)
            )
            return peer
        raise NetTimeout(f"{address} did not answer within {timeout_s:g} s")

    async def open_stream(
        self, peer: PeerId, protocol_id: str, *, timeout_s: float
    ) -> MemoryStream:
        connection = self._connection(peer)
        if len(connection.streams) >= STREAMS_PER_CONNECTION_MAX:
            raise Backpressure(f"{len(connection.streams)} streams to {peer} are open")
        stream = connection.new_stream()
        answer = _Answer(stream)
        connection.wire.put(
            lambda: connection.other.on_open(connection, stream, protocol_id, answer)
        )
        try:
            with trio.fail_after(timeout_s):
                await answer.wait()
        except trio.TooSlowError:
            await stream.reset()
            raise NetTimeout(f"{peer} opened no stream within {timeout_s:g} s") from None
        except BaseException:
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

    def peer_events(self) -> trio.MemoryReceiveChannel[PeerEvent]:
        return self._watchers.add()

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
        return self._topics.subscribe(topic, validate, queue_max=queue_max)

    async def publish(self, topic: str, data: bytes) -> None:
        if len(data) > GOSSIP_BYTES_MAX:
            raise LocalProtocolError(f"gossip of {len(data)} bytes is over the limit")
        await trio.lowlevel.checkpoint()
        self._check_running()
        self._spread(next(self.network.numbers), topic, data, exclude=self._peer_id)

    def statistics(self) -> TransportStatistics:
        return TransportStatistics(
            connections=len(self._connections),
            gossip_received=self._topics.received,
            gossip_rejected=self._topics.rejected,
            gossip_dropped=self._topics.dropped,
            buffered_bytes=self.buffers.held_bytes,
            buffers_dropped=self.buffers.dropped,
            **self._counts,
        )

    # For the network and for other transports.

    @property
    def is_running(self) -> bool:
        return self._nursery is not None

    def has_joined(self, topic: str) -> bool:
        return topic in self._topics

    def die(self) -> None:
        """Break every connection, as the kernel does for a process that is gone."""
        nursery, self._nursery = self._nursery, None
        self.network.forget(self._port, self)
        for connection in list(self._connections.values()):
            self.drop(connection, "the process is gone")
        if nursery is not None:
            nursery.cancel_scope.cancel()

    def drop(self, connection: _Connection, reason: str) -> None:
        """Close our side at once; the other side notices when the news arrives."""
        mate = connection.mate
        self.lose(connection, reason)
        if mate is not None:
            news = partial(mate.owner.lose, mate, "the peer closed the connection")
            connection.wire.put(news, surely=True)

    def lose(self, connection: _Connection, reason: str) -> None:
        """Our side of a connection ends; its streams with it."""
        peer = connection.other.peer_id
        connection.mate = None
        connection.memory.close()
        for stream in list(connection.streams):
            stream.on_connection_lost(f"{peer}: {reason}")
        if self._connections.get(peer) is connection:
            del self._connections[peer]
            self._watchers.tell(PeerEvent(peer, connected=False))

    def give_up(self, connection: _Connection) -> None:
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
        self, theirs: _Connection, stream: MemoryStream, protocol_id: str, answer: "_Answer"
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

    def on_ping(self, theirs: _Connection, pong: trio.Event) -> None:
        if theirs.mate is not None:
            theirs.mate.wire.put(pong.set)

    def on_gossip(self, number: int, topic: str, data: bytes, via: PeerId) -> None:
        if not self.is_running:
            return
        self.network.counts["gossip_arrived"] += 1
        if number in self._seen:
            return
        if number < self._newest.get(topic, 0):
            self.network.counts["gossip_overtaken"] += 1
        self._newest[topic] = max(number, self._newest.get(topic, 0))
        self._remember(number)
        if self._topics.is_valid(topic, data, via):
            self._topics.deliver(topic, data, via)
            self._spread(number, topic, data, exclude=via)

    # Connections.

    async def _dial(self, port: int, peer: PeerId) -> None:
        wire = Wire(
            self.network.rng,
            self.network.conditions(self._peer_id, peer),
            self.agenda,
            lost=lambda: None,
        )
        for _ in range(2 * CONNECT_ROUND_TRIPS):
            await trio.sleep(wire.delay_s())
        while self.network.is_silent(self._peer_id, peer) or self.network.is_silent(
            peer, self._peer_id
        ):
            await self.network.rearranged.park()
        other = self.network.at(port)
        if other is None:
            raise ConnectFailed(f"no peer listens at /memory/{port}")
        if other.peer_id != peer:
            raise PeerMismatch(f"/memory/{port} is {other.peer_id}, not {peer}")
        if peer not in self._connections:
            self._join(other)

    def _join(self, other: "MemoryTransport") -> None:
        ours, theirs = _Connection(self, other), _Connection(other, self)
        ours.mate, theirs.mate = theirs, ours
        for connection in (ours, theirs):
            owner, peer = connection.owner, connection.other.peer_id
            stale = owner._connections.get(peer)
            if stale is not None:
                # Its news is still under way, or the peer's key runs twice. Latest wins.
                owner.lose(stale, "the peer connected anew")
            owner._connections[peer] = connection
            owner._watchers.tell(PeerEvent(peer, connected=True))

    def _connection(self, peer: PeerId) -> _Connection:
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

    # Gossip.

    def _spread(self, number: int, topic: str, data: bytes, *, exclude: PeerId) -> None:
        """To every neighbour in the topic; what gossipsub's mesh does in a small network."""
        self._remember(number)
        rng = self.network.rng
        for peer, connection in self._connections.items():
            target, conditions = connection.other, connection.wire.conditions
            if peer == exclude or connection.wire.is_silent or not target.has_joined(topic):
                continue
            if conditions.loss and rng.random() < conditions.loss:
                continue
            delay_s = connection.wire.delay_s()
            if conditions.gossip_delay_s:
                delay_s += rng.uniform(0, conditions.gossip_delay_s)
            arrive = partial(target.on_gossip, number, topic, data, self._peer_id)
            target.agenda.add(trio.current_time() + delay_s, arrive)
            if conditions.gossip_duplicates and rng.random() < conditions.gossip_duplicates:
                self.network.counts["gossip_duplicated"] += 1
                # Under a new number, as after the seen-cache has forgotten it.
                again = partial(
                    target.on_gossip, next(self.network.numbers), topic, data, self._peer_id
                )
                detour_s = delay_s * rng.uniform(1, DETOUR_MAX)
                target.agenda.add(trio.current_time() + detour_s, again)

    def _remember(self, number: int) -> None:
        self._seen[number] = None
        if len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]


class _Answer:
    """What the other side says to a stream that we want to open."""

    def __init__(self, stream: MemoryStream) -> None:
        self._done = trio.Event()
        self._accepted = False
        self._error: NetError | None = None
        self._stream = stream
        stream.on_failure = self._done.set

    def accept(self) -> None:
        self._accepted = True
        self._done.set()

    def refuse(self, error: NetError) -> None:
        self._error = error
        self._done.set()

    async def wait(self) -> None:
        await self._done.wait()
        if self._error is not None:
            raise self._error
        if not self._accepted:
            self._stream.check()


def parse_memory_address(address: str) -> tuple[int, PeerId]:
    """/memory/PORT/p2p/ID. Raises AddressInvalid."""
    place, peer = split_peer_id(address)
    kind, separator, port = place.removeprefix("/").partition("/")
    if kind != "memory" or not separator:
        raise AddressInvalid(f"{address!r} is not /memory/PORT/p2p/ID")
    return parse_port(port, address), peer
