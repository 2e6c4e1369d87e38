"""From bytes to a connection: Noise proves who is at the other end, Yamux is agreed on.

The bytes may be a socket's or a circuit's, and we may be the one that dialled or not.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import structlog
from libp2p.abc import IRawConnection
from libp2p.exceptions import BaseLibp2pError
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.swarm import Swarm
from libp2p.peer.id import ID
from libp2p.security.noise.exceptions import PeerIDMismatchesPubkey
from multiaddr import Multiaddr

from protocol.ids import PeerId
from protocol.net.errors import ConnectFailed, PeerMismatch
from protocol.net.libp2p_yamux import Mux
from protocol.net.serve import opening

log = structlog.get_logger(__name__)

# The library wants to know where a connection came in, for its log.
ANYWHERE = Multiaddr("/ip4/0.0.0.0/tcp/0")


class Abortable(Protocol):
    """What carries the bytes."""

    async def abort(self) -> None: ...


class Handshakes:
    """The handshakes of one swarm. Deadlines are the callers'."""

    def __init__(self, swarm: Swarm) -> None:
        self._swarm = swarm

    async def as_client(
        self, pipe: Abortable, raw: RawConnection, peer: PeerId, *, place: str
    ) -> SwarmConn:
        """As the side that speaks first. Raises ConnectFailed, PeerMismatch; then the pipe is
        closed."""
        try:
            with _shaking_hands(peer, place):
                connection = await self._swarm.upgrade_outbound_raw_conn(raw, ID.from_base58(peer))
        except BaseException:
            # Failed or cancelled: the library has not taken the pipe over yet.
            await pipe.abort()
            raise
        if connection.is_closed:
            raise ConnectFailed(f"{peer} closed the connection at once")
        return connection

    async def as_server(self, raw: RawConnection) -> SwarmConn | None:
        """As the side that answers. None if the peer did not manage."""
        try:
            mux = await self._swarm.upgrade_inbound_raw_conn(raw, ANYWHERE)
        except (BaseLibp2pError, OSError) as error:
            log.debug("handshake_failed", error=str(error))
            return None
        assert isinstance(mux, Mux)
        for connection in self._swarm.get_connections(mux.peer_id):
            if isinstance(connection, SwarmConn) and connection.muxed_conn is mux:
                return connection
        return None

    async def prove(
        self, pipe: Abortable, raw: IRawConnection, peer: PeerId, *, place: str
    ) -> None:
        """Let the other end prove that it is `peer`, and hang up. Raises as `as_client` does."""
        try:
            with _shaking_hands(peer, place):
                await self._swarm.upgrader.upgrade_security(raw, True, ID.from_base58(peer))
        finally:
            await pipe.abort()


@contextmanager
def _shaking_hands(peer: PeerId, place: str) -> Iterator[None]:
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
