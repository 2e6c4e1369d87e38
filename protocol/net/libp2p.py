"""The transport of the real network: TCP, Noise, Yamux and gossipsub through py-libp2p.

Only `libp2p*.py` import that library. Where this code goes its own way, the reason is beside it.
"""

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import structlog
import trio
from libp2p.custom_types import TProtocol
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from libp2p.stream_muxer.exceptions import MuxedConnUnavailable
from multiaddr import Multiaddr

from protocol.errors import LocalProtocolError
from protocol.ids import PeerId
from protocol.keys import SigningKey
from protocol.net.addresses import check_tcp, split_peer_id
from protocol.net.buffers import Buffers
from protocol.net.dial_policy import PUBLIC_ONLY, DialPolicy
from protocol.net.dials import Dials
from protocol.net.errors import (
    AddressForbidden,
    Backpressure,
    ConnectFailed,
    NetTimeout,
    PeerMismatch,
)
from protocol.net.gossip import Topics
from protocol.net.libp2p_admission import SocketPlaces, Stranger
from protocol.net.libp2p_connections import PeerConnections, mux_of
from protocol.net.libp2p_gossip import GossipService, running_gossip
from protocol.net.libp2p_host import forget_peer, make_host, quiet_libp2p
from protocol.net.libp2p_stream import Libp2pStream, handler_for, negotiate
from protocol.net.libp2p_tcp import (
    BufferedTcp,
    dial,
    interface_hosts,
    listen_at,
    local_host_of,
    places_of,
)
from protocol.net.libp2p_yamux import Mux
from protocol.net.serve import Boundary, opening
from protocol.net.transport import (
    GOSSIP_BYTES_MAX,
    STREAMS_PER_CONNECTION_MAX,
    Gossip,
    Handler,
    TransportStatistics,
    Validator,
)

log = structlog.get_logger(__name__)

# The library wants to know where a connection came in, for its log.
ANYWHERE = Multiaddr("/ip4/0.0.0.0/tcp/0")


class Libp2pTransport:
    """One party on the real network.

    `listen` are multiaddrs without /p2p/; port 0 is any free one, and no address at all makes a
    party that only dials. `announce` replaces them in `addresses`, for parties behind a forwarded
    port. `policy` judges every dial.
    """

    def __init__(
        self,
        key: SigningKey,
        listen: tuple[str, ...] = (),
        *,
        announce: tuple[str, ...] = (),
        policy: DialPolicy = PUBLIC_ONLY,
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
        self._connections = PeerConnections(
            self._admission, forget=partial(forget_peer, self._host), counts=self._counts
        )
        self._dials = Dials()
        self._topics = Topics(on_left=self._leave)
        self._gossip: GossipService | None = None
        self._nursery: trio.Nursery | None = None

    @property
    def peer_id(self) -> PeerId:
        return self._peer_id

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._addresses

    @property
    def announced(self) -> tuple[str, ...]:
        if self._announce:
            return self._addresses
        return tuple(a for a in self._addresses if self._policy.allows_place(split_peer_id(a)[0]))

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        quiet_libp2p()
        listeners = self._listeners
        host_scope = trio.CancelScope(shield=True)
        try:
            for place in self._listen:
                listeners += await listen_at(place)
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

    def handle(self, protocol_id: str, handler: Handler) -> None:
        self._host.set_stream_handler(
            TProtocol(protocol_id), handler_for(handler, protocol_id, self._counts)
        )

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        place, peer = self._split(address)
        with trio.move_on_after(timeout_s):
            await self._dials.ensure(
                address,
                lambda: self._connections.live(peer) is not None,
                partial(self._dial, place, peer),
            )
            return peer
        raise NetTimeout(f"{address} did not answer within {timeout_s:g} s")

    async def probe(self, address: str, *, timeout_s: float) -> None:
        place, peer = self._split(address)
        with trio.move_on_after(timeout_s):
            stream = await self._reach(place, peer)
            try:
                with _shaking_hands(place, peer):
                    raw = RawConnection(BufferedTcp(stream), True)
                    await self._swarm.upgrader.upgrade_security(raw, True, ID.from_base58(peer))
            finally:
                await trio.aclose_forcefully(stream)
            return
        raise NetTimeout(f"{address} did not answer within {timeout_s:g} s")

    def observed_host(self, peer: PeerId) -> str:
        return self._connections.observed_host(peer)

    def refresh_addresses(self) -> bool:
        was, self._addresses = self._addresses, self._reachable_at()
        self._connections.drop_from_elsewhere(interface_hosts())
        return was != self._addresses

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
        if peer == self._peer_id:
            raise ConnectFailed(f"{address} is our own address")
        if self._nursery is None:
            raise ConnectFailed("the transport is not running")
        return place, peer

    async def _reach(self, place: str, peer: PeerId) -> trio.SocketStream:
        """Raises ConnectFailed, AddressForbidden."""
        try:
            return await dial(place, self._policy)
        except AddressForbidden:
            self._counts["dials_forbidden"] += 1
            log.info("dial_forbidden", peer=peer, place=place)
            raise

    async def _dial(self, place: str, peer: PeerId) -> None:
        stream = await self._reach(place, peer)
        raw = RawConnection(BufferedTcp(stream), True)
        try:
            with _shaking_hands(place, peer):
                await self._swarm.upgrade_outbound_raw_conn(raw, ID.from_base58(peer))
        except BaseException:
            # Failed or cancelled: the library has not taken the socket over yet.
            await trio.aclose_forcefully(stream)
            raise
        connection = self._find(ID.from_base58(peer))
        if connection is None or self._nursery is None:
            raise ConnectFailed(f"{peer} closed the connection at once")
        self._admission.admit(mux_of(connection), is_inbound=False)
        self._connections.register(peer, connection, local_host=local_host_of(stream))
        self._nursery.start_soon(self._connections.wait_end, peer, connection)

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
        peer = PeerId(str(mux_of(connection).peer_id))
        if self._admission.admit(mux_of(connection), is_inbound=True):
            self._connections.register(peer, connection, local_host=local_host_of(stream))
            await self._connections.wait_end(peer, connection)
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
            raw = RawConnection(stranger.tcp, False)
            mux = await self._swarm.upgrade_inbound_raw_conn(raw, ANYWHERE)
        except (BaseLibp2pError, OSError) as error:
            log.debug("handshake_failed", block=stranger.block, error=str(error))
            return None
        finally:
            if turn is not None:
                turn.end()
        assert isinstance(mux, Mux)
        return self._find(mux.peer_id)

    def _find(self, peer_id: ID) -> SwarmConn | None:
        """The youngest connection to a peer, which is the one that was just made."""
        for connection in reversed(self._swarm.get_connections(peer_id)):
            if isinstance(connection, SwarmConn):
                return connection
        return None

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


@contextmanager
def _shaking_hands(place: str, peer: PeerId) -> Iterator[None]:
    """Raises PeerMismatch, or ConnectFailed for whatever else goes wrong."""
    try:
        with opening(f"no handshake with {peer} at {place}"):
            yield
    except ConnectFailed as error:
        if _was_caused_by(error, PeerIDMismatchesPubkey):
            raise PeerMismatch(f"the peer at {place} is not {peer}") from error
        raise


def _was_caused_by(error: BaseException | None, kind: type[BaseException]) -> bool:
    while error is not None:
        if isinstance(error, kind):
            return True
        error = error.__cause__
    return False
