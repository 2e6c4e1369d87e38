"""Who is connected: the connections of one transport by peer, from their handshake to their end."""

from collections import Counter
from collections.abc import Callable, Iterable

import trio
from libp2p.network.connection.swarm_connection import SwarmConn
from trio.lowlevel import ParkingLot

from protocol.ids import PeerId
from protocol.net.libp2p_admission import CONNECTIONS_PER_PEER_MAX, SocketPlaces
from protocol.net.libp2p_yamux import Mux

# Closing a connection takes the library a fixed 0.1 s; all are closed at once, within this.
CLOSE_WITHIN_S = 2.0


class PeerConnections:
    """Each peer's connections, the oldest first. `forget` is told of a peer whose last one ended;
    `counts` gets `peers_timed_out`."""

    def __init__(
        self, places: SocketPlaces, *, forget: Callable[[PeerId], None], counts: Counter[str]
    ) -> None:
        self._places = places
        self._forget = forget
        self._counts = counts
        self._by_peer: dict[PeerId, list[SwarmConn]] = {}
        # Our own end of each.
        self._local_hosts: dict[SwarmConn, str] = {}
        self._ended = ParkingLot()

    def __len__(self) -> int:
        return sum(map(len, self._by_peer.values()))

    def live(self, peer: PeerId) -> SwarmConn | None:
        """The oldest connection that works: two parties may dial each other at the same time, and
        both then use the same one for most of its life. But a peer that has moved to another
        network has left one behind, on which nothing comes; and one through a relay is used only
        if there is no other."""
        working = [
            connection
            for connection in self._by_peer.get(peer, ())
            if mux_of(connection).is_established and not mux_of(connection).is_retiring
        ]
        return min(working, key=_reluctance, default=None)

    def peers(self) -> frozenset[PeerId]:
        """Those with a connection that works."""
        return frozenset(peer for peer in self._by_peer if self.live(peer) is not None)

    def observed_host(self, peer: PeerId) -> str:
        """Where the other end of a live connection is; empty if there is none."""
        connection = self.live(peer)
        remote = None if connection is None else mux_of(connection).get_remote_address()
        return "" if remote is None else remote[0].partition("%")[0]

    def drop_from_elsewhere(self, hosts: Iterable[str]) -> None:
        """End the connections whose own end is at none of these: nothing comes through them any
        more, and nothing says so."""
        here = frozenset(hosts)
        for connection, host in list(self._local_hosts.items()):
            if host and host not in here:
                mux_of(connection).drop()

    def is_direct(self, peer: PeerId) -> bool:
        connection = self.live(peer)
        return connection is not None and mux_of(connection).origin.relay is None

    async def wait_gone(self, peer: PeerId) -> None:
        """Until none of the peer's connections works."""
        await trio.lowlevel.checkpoint()
        while self.live(peer) is not None:
            await self._ended.park()

    def register(self, peer: PeerId, connection: SwarmConn, *, local_host: str) -> list[SwarmConn]:
        """A handshake is done. The caller waits for the end with `wait_end`, and retires the
        connections that are returned: through relays, which a direct one takes over from."""
        self._local_hosts[connection] = local_host
        connections = self._by_peer.setdefault(peer, [])
        superseded = []
        if mux_of(connection).origin.relay is None:
            superseded = [each for each in connections if mux_of(each).origin.relay is not None]
        connections.append(connection)
        for surplus in connections[:-CONNECTIONS_PER_PEER_MAX]:
            mux_of(surplus).drop()
        return superseded

    async def retire(self, connection: SwarmConn) -> None:
        """Let the streams of a connection finish, open no more, then close it."""
        mux = mux_of(connection)
        if not mux.is_retiring:
            mux.is_retiring = True
            self._ended.unpark_all()
            await mux.wait_unused()
            await _close([connection])

    async def wait_end(self, peer: PeerId, connection: SwarmConn) -> None:
        """Until a registered connection is over; then it is registered no more."""
        mux = mux_of(connection)
        try:
            await mux.event_closed.wait()
        finally:
            self._places.dismiss(mux)
            self._local_hosts.pop(connection, None)
            self._counts["peers_timed_out"] += mux.timed_out
            connections = self._by_peer[peer]
            connections.remove(connection)
            if not connections:
                del self._by_peer[peer]
                self._forget(peer)
            self._ended.unpark_all()

    async def close(self, peer: PeerId) -> None:
        """Close every connection to the peer, in good order if it reads."""
        await _close(self._by_peer.get(peer, ()))

    async def close_all(self) -> None:
        await _close([each for known in self._by_peer.values() for each in known])


def mux_of(connection: SwarmConn) -> Mux:
    """Our own multiplexer under the library's connection."""
    assert isinstance(connection.muxed_conn, Mux)
    return connection.muxed_conn


def peer_of(connection: SwarmConn) -> PeerId:
    return PeerId(str(mux_of(connection).peer_id))


def _reluctance(connection: SwarmConn) -> tuple[bool, bool]:
    mux = mux_of(connection)
    return mux.is_silent, mux.origin.relay is not None


async def _close(connections: Iterable[SwarmConn]) -> None:
    with trio.move_on_after(CLOSE_WITHIN_S):
        async with trio.open_nursery() as nursery:
            for connection in connections:
                nursery.start_soon(connection.close)
