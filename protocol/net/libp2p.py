"""The transport of the real network: TCP, Noise, Yamux and gossipsub through py-libp2p.

Only `libp2p*.py` import that library. Where this code goes its own way, the reason is beside it.
"""

import time
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial

import structlog
import trio
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.peer.id import ID
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable

from protocol.errors import LocalProtocolError
from protocol.ids import PeerId
from protocol.keys import SigningKey
from protocol.net.addresses import check_tcp, split_circuit, split_peer_id
from protocol.net.buffers import Buffers
from protocol.net.dial_policy import PUBLIC_ONLY, DialPolicy
from protocol.net.dials import Dials
from protocol.net.errors import (
    AddressForbidden,
    Backpressure,
    ConnectFailed,
    NetTimeout,
)
from protocol.net.gossip import Topics
from protocol.net.libp2p_admission import SocketPlaces, Stranger
from protocol.net.libp2p_circuits import Libp2pCircuits
from protocol.net.libp2p_connections import PeerConnections, mux_of, peer_of
from protocol.net.libp2p_gossip import GossipService, running_gossip
from protocol.net.libp2p_handshake import Handshakes
from protocol.net.libp2p_host import forget_peer, make_host, quiet_libp2p
from protocol.net.libp2p_observed import Observations
from protocol.net.libp2p_stream import Libp2pStream, handler_for, negotiate
from protocol.net.libp2p_tcp import (
    BufferedTcp,
    OwnPort,
    dial,
    interface_hosts,
    listen_at,
    local_host_of,
    place_at,
    places_of,
)
from protocol.net.relay_places import RelayLimits
from protocol.net.reservations import KeptReservation
from protocol.net.serve import Boundary
from protocol.net.transport import (
    GOSSIP_BYTES_MAX,
    STREAMS_PER_CONNECTION_MAX,
    Gossip,
    Handler,
    TransportStatistics,
    Validator,
)

log = structlog.get_logger(__name__)


class Libp2pTransport:
    """One party on the real network.

    `listen` are multiaddrs without /p2p/; port 0 is any free one, and no address at all makes a
    party that only dials. `announce` replaces them in `addresses`, for parties behind a forwarded
    port. `policy` judges every dial. With `relay` it is a relay for others.
    Where it is called through a relay, it tries to do without, if it `does_without_relays`.
    """

    def __init__(
        self,
        key: SigningKey,
        listen: tuple[str, ...] = (),
        *,
        announce: tuple[str, ...] = (),
        policy: DialPolicy = PUBLIC_ONLY,
        relay: RelayLimits | None = None,
        does_without_relays: bool = True,
    ) -> None:
        self._peer_id = key.peer_id
        self._listen = listen
        self._announce = announce
        self._listeners: list[trio.SocketListener] = []
        self._addresses: tuple[str, ...] = ()
        self._policy = policy
        self._buffers = Buffers()
        self._admission = SocketPlaces.of_this_process()
        self._host, self._swarm = make_host(key, lambda: self._addresses, self._buffers)
        self._counts: Counter[str] = Counter()
        self._own_port = OwnPort()
        self._connections = PeerConnections(
            self._admission, forget=self._forget, counts=self._counts
        )
        self._dials = Dials()
        self._topics = Topics(on_left=self._leave)
        self._gossip: GossipService | None = None
        self._nursery: trio.Nursery | None = None
        self.handshakes = Handshakes(self._swarm)
        self.observations = Observations(self._connections.live)
        self._circuits = Libp2pCircuits(
            self, relay, tells=policy.allows_place, does_without_relays=does_without_relays
        )

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    @property
    def announced(self) -> tuple[str, ...]:
        direct = tuple(f"{place}/p2p/{self._peer_id}" for place in self.direct_places())
        return direct + self._circuits.addresses

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        quiet_libp2p()
        listeners = self._listeners
        host_scope = trio.CancelScope(shield=True)
        try:
            for place in self._listen:
                listeners += await listen_at(place)
            for listener in listeners:
                self._own_port.listen(listener)
            self._addresses = self._reachable_at()
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                await nursery.start(self._run_host, host_scope)
                for topic in self._topics.names():
                    nursery.start_soon(self._join, topic)
                if listeners:
                    welcome = Boundary(self._welcome, "connection").run
                    nursery.start_soon(trio.serve_listeners, welcome, listeners)
                task_status.started()
                try:
                    await trio.sleep_forever()
                finally:
                    # The host is shielded so that its connections can be closed in good order;
                    # cancelled in the middle, the library leaks their sockets.
                    await self._close_all()
                    host_scope.cancel()
                    # Before the nursery is closed: no task may be started in it then.
                    self._nursery = None
        finally:
            self._nursery = None
            self._addresses = ()
            for listener in listeners:
                await trio.aclose_forcefully(listener)
            listeners.clear()
            self._own_port.forget()

    def handle(self, protocol_id: str, handler: Handler) -> None:
        self._host.set_stream_handler(
            TProtocol(protocol_id), handler_for(handler, protocol_id, self._counts)
        )

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        circuit = split_circuit(address)
        direct_address, peer = circuit or (address, split_peer_id(address)[1])
        place, first = split_peer_id(direct_address)
        check_tcp(place)
        self._check_dial(address, peer)
        with trio.move_on_after(timeout_s):
            if circuit is None:
                await self._dials.ensure(
                    address,
                    lambda: self._connections.is_direct(peer),
                    partial(self._dial, place, peer),
                )
                return peer
            await self._dials.ensure(
                address,
                lambda: self._connections.live(peer) is not None,
                partial(self._circuits.dial, place, first, peer),
            )
            return peer
        raise NetTimeout(f"{address} did not answer within {timeout_s:g} s")

    async def probe(self, address: str, *, timeout_s: float) -> None:
        place, peer = self._split(address)
        with trio.move_on_after(timeout_s):
            pipe = await self._dial_tcp(place, peer)
            await self.handshakes.prove(pipe, RawConnection(pipe, True), peer, place=place)
            return
        raise NetTimeout(f"{address} did not answer within {timeout_s:g} s")

    def observed_host(self, peer: PeerId) -> str:
        return self._connections.observed_host(peer)

    def refresh_addresses(self) -> bool:
        was, self._addresses = self._addresses, self._reachable_at()
        self._connections.drop_from_elsewhere(interface_hosts())
        return was != self._addresses

    def relay_of(self, peer: PeerId) -> PeerId | None:
        connection = self._connections.live(peer)
        return None if connection is None else mux_of(connection).origin.relay

    def is_direct(self, peer: PeerId) -> bool:
        """Whether new streams to a peer need no relay."""
        return self._connections.is_direct(peer)

    def reserve(
        self, relay_address: str, on_change: Callable[[], None] = lambda: None
    ) -> KeptReservation:
        check_tcp(split_peer_id(relay_address)[0])
        if self._nursery is None:
            raise ConnectFailed("the transport is not running")
        return self._circuits.keep(relay_address, on_change, self._nursery)

    async def open_stream(
        self, peer: PeerId, protocol_id: str, *, timeout_s: float
    ) -> Libp2pStream:
        connection = self._connections.live(peer)
        if connection is None:
            raise ConnectFailed(f"{peer} is not connected")
        open_now = len(mux_of(connection).streams)
        if open_now >= STREAMS_PER_CONNECTION_MAX:
            raise Backpressure(f"{open_now} streams to {peer} are open")
        with trio.move_on_after(timeout_s):
            stream = await negotiate(connection, peer, protocol_id)
            self._counts["streams_opened"] += 1
            return stream
        raise NetTimeout(f"{peer} opened no stream within {timeout_s:g} s")

    async def disconnect(self, peer: PeerId) -> None:
        await trio.lowlevel.checkpoint()
        await self._connections.close(peer)

    async def wait_disconnected(self, peer: PeerId) -> None:
        await self._connections.wait_gone(peer)

    def connected_peers(self) -> frozenset[PeerId]:
        return self._connections.peers()

    async def ping(self, peer: PeerId, *, timeout_s: float) -> float:
        connection = self._connections.live(peer)
        if connection is None:
            raise ConnectFailed(f"{peer} is not connected")
        with trio.move_on_after(timeout_s):
            try:
                return await mux_of(connection).ping()
            except MuxedConnUnavailable:
                raise ConnectFailed(f"{peer} is not connected any more") from None
        raise NetTimeout(f"{peer} did not answer a ping within {timeout_s:g} s")

    def subscribe(
        self, topic: str, validate: Validator, *, queue_max: int
    ) -> trio.MemoryReceiveChannel[Gossip]:
        messages = self._topics.subscribe(topic, validate, queue_max=queue_max)
        if self._nursery is not None:
            self._nursery.start_soon(self._join, topic)
        return messages

    async def publish(self, topic: str, data: bytes) -> None:
        if len(data) > GOSSIP_BYTES_MAX:
            raise LocalProtocolError(f"gossip of {len(data)} bytes is over the limit")
        if self._gossip is None:
            raise ConnectFailed("the transport is not running")
        await self._gossip.publish(topic, data)

    def statistics(self) -> TransportStatistics:
        return TransportStatistics(
            connections=len(self._connections),
            gossip_received=self._topics.received,
            gossip_rejected=self._topics.rejected,
            gossip_dropped=self._topics.dropped,
            strangers_evicted=self._admission.strangers_evicted,
            strangers_refused=self._admission.strangers_refused,
            connections_evicted=self._admission.connections_evicted,
            buffered_bytes=self._buffers.held_bytes,
            buffers_dropped=self._buffers.dropped,
            **self._counts,
            **self._circuits.statistics(),
        )

    # The host.

    async def _run_host(
        self,
        scope: trio.CancelScope,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        # Gossip numbers must grow over restarts; the clock does, as far as it matters here.
        gossip = running_gossip(self._host, self._topics, first_number=time.time_ns())
        with scope:
            async with self._host.run([]), gossip as self._gossip:
                # They dial every peer that was ever seen, and drop connections that look idle.
                await self._swarm.auto_connector.stop()
                await self._swarm.connection_pruner.stop()
                task_status.started()
                await trio.sleep_forever()
        self._gossip = None

    def _reachable_at(self) -> tuple[str, ...]:
        places = self._announce or tuple(
            place for listener in self._listeners for place in places_of(listener)
        )
        return tuple(f"{place}/p2p/{self._peer_id}" for place in places)

    # Connections.

    def _split(self, address: str) -> tuple[str, PeerId]:
        """Raises AddressInvalid, ConnectFailed."""
        place, peer = split_peer_id(address)
        check_tcp(place)
        self._check_dial(address, peer)
        return place, peer

    async def _dial(self, place: str, peer: PeerId) -> None:
        pipe = await self._dial_tcp(place, peer)
        raw = RawConnection(pipe, True)
        connection = await self.handshakes.as_client(pipe, raw, peer, place=place)
        self.adopt(peer, connection, local_host=local_host_of(pipe.stream))

    async def _dial_tcp(self, place: str, peer: PeerId) -> BufferedTcp:
        try:
            return BufferedTcp(await dial(place, self._policy, self._own_port))
        except AddressForbidden:
            self._counts["dials_forbidden"] += 1
            log.info("dial_forbidden", peer=peer, place=place)
            raise

    async def _welcome(self, stream: trio.SocketStream) -> None:
        """A peer dialled us. The socket is closed when this returns."""
        stranger = self._admission.take_in(stream)
        if stranger is None:
            return
        try:
            with stranger.life:
                connection = await self._shake_hands(stranger)
        finally:
            self._admission.leave(stranger)
        if stranger.life.cancelled_caught or connection is None:
            return
        if self.admit(connection):
            local_host = local_host_of(stream)
            await self.carry_inbound(peer_of(connection), connection, local_host=local_host)
        else:
            await connection.close()

    async def _shake_hands(self, stranger: Stranger) -> SwarmConn | None:
        """The connection, or None if the peer did not manage."""
        if self._nursery is None:
            return None
        turn = None
        try:
            turn = await self._admission.wait_turn(stranger, self._nursery)
            if turn is None:
                return None
            return await self.handshakes.as_server(RawConnection(stranger.tcp, False))
        except (BaseLibp2pError, OSError) as error:
            log.debug("handshake_failed", block=stranger.block, error=str(error))
            return None
        finally:
            if turn is not None:
                turn.end()

    # For its circuits, too.

    def direct_places(self) -> list[str]:
        """Where we listen, as far as strangers would dial it; without /p2p/."""
        places = [split_peer_id(address)[0] for address in self._addresses]
        return [each for each in places if self._announce or self._policy.allows_place(each)]

    async def listen_where_we_dial(self) -> list[trio.SocketListener]:
        """For a party that does not listen, for a moment."""
        return await self._own_port.listen_too()

    async def dial_from_port(self, place: str) -> BufferedTcp:
        """Dial so that the router uses the place outside that it has given us already.

        Raises ConnectFailed, AddressForbidden.
        """
        return BufferedTcp(await dial(place, self._policy, self._own_port, must_be_from_port=True))

    def adopt(self, peer: PeerId, connection: SwarmConn, *, local_host: str = "") -> None:
        """Keep a connection that we made, from one of our hosts or through a relay. Raises
        ConnectFailed if we do not run any more."""
        if self._nursery is None:
            raise ConnectFailed("the transport is not running")
        self._admission.admit(mux_of(connection), is_inbound=False)
        self._register(peer, connection, local_host)
        self._nursery.start_soon(self._connections.wait_end, peer, connection)

    def admit(self, connection: SwarmConn) -> bool:
        """Whether there is a place for a connection that a peer made."""
        return self._admission.admit(mux_of(connection), is_inbound=True)

    async def carry_inbound(
        self, peer: PeerId, connection: SwarmConn, *, local_host: str = ""
    ) -> None:
        """Keep a connection that a peer made, until it ends."""
        self._register(peer, connection, local_host)
        await self._connections.wait_end(peer, connection)

    async def retire(self, connection: SwarmConn) -> None:
        await self._connections.retire(connection)

    def start_soon(self, task: Callable[..., Awaitable[object]], *arguments: object) -> None:
        """A task that ends with this transport; nothing happens if that is over."""
        if self._nursery is not None:
            self._nursery.start_soon(task, *arguments)

    def place_of(self, peer: PeerId) -> str:
        """Where the peer of our connection is, as far as its socket says. Raises ConnectFailed."""
        connection = self._connections.live(peer)
        remote = None if connection is None else mux_of(connection).get_remote_address()
        if remote is None:
            raise ConnectFailed(f"{peer} is not connected directly")
        return place_at(*remote)

    def _register(self, peer: PeerId, connection: SwarmConn, local_host: str) -> None:
        for superseded in self._connections.register(peer, connection, local_host=local_host):
            self._counts["circuits_upgraded"] += 1
            self.start_soon(self._connections.retire, superseded)

    def _forget(self, peer: PeerId) -> None:
        forget_peer(self._host, ID.from_base58(peer))
        self._circuits.forget(peer)

    def _check_dial(self, address: str, peer: PeerId) -> None:
        if peer == self._peer_id:
            raise ConnectFailed(f"{address} is our own address")
        if self._nursery is None:
            raise ConnectFailed("the transport is not running")

    async def _close_all(self) -> None:
        with trio.CancelScope(shield=True):
            await self._connections.close_all()
            # Ends the tasks that the library started outside of any nursery of ours.
            await self._host.close()

    # Topics.

    async def _join(self, topic: str) -> None:
        if self._gossip is not None:
            self._gossip.set_topic_validator(topic, self._gossip.validator_of(topic), False)
            await self._gossip.subscribe(topic)

    def _leave(self, topic: str) -> None:
        if self._gossip is not None and self._nursery is not None:
            self._gossip.remove_topic_validator(topic)
            self._nursery.start_soon(self._gossip.unsubscribe, topic)
