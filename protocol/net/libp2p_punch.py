"""Doing without the relay (DCUtR): two parties behind routers dial each other at the same moment,
from the ports that their routers have already given a place outside.

Each router lets the other's packets in because its own party has just sent one there. Where a
router gives every destination another port, or drops what it does not expect for longer, it fails;
then the relay goes on serving, and no caller notices.

Source: https://github.com/libp2p/specs/blob/master/relay/DCUtR.md
"""

from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog
import trio
from libp2p.network.connection.raw_connection import RawConnection
from libp2p.network.connection.swarm_connection import SwarmConn
from multiaddr import Multiaddr

from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId
from protocol.net.addresses import check_tcp
from protocol.net.circuit_messages import (
    ADDRESSES_READ_MAX,
    DCUTR_PROTOCOL,
    PunchKind,
    PunchMessage,
    receive_message,
    send_message,
)
from protocol.net.errors import ConnectFailed, NetError
from protocol.net.libp2p_connections import mux_of, peer_of
from protocol.net.libp2p_stream import negotiate
from protocol.net.libp2p_tcp import PUNCHED_BACKLOG, BufferedTcp, local_host_of
from protocol.net.transport import Stream

if TYPE_CHECKING:
    from protocol.net.libp2p import Libp2pTransport

log = structlog.get_logger(__name__)

# As other implementations do. The second try meets routers that dropped the first packet of one
# side only, the third bad luck.
TRIES = 3
# A lost first packet is sent again after one second, and once more two seconds later.
PUNCH_WITHIN_S = 4.0
# Stretches of bad luck do not come at the same time after each try.
PAUSE_S = 0.5
# Packets that a stranger's addresses make us send, in one try.
PUNCHED_ADDRESSES_MAX = 4
# Tries that go on at once: sockets, and packets to addresses that strangers named.
PUNCHES_AT_ONCE = 16


class HolePunches:
    """The direct connections that one transport tries to make out of relayed ones."""

    def __init__(self, owner: "Libp2pTransport") -> None:
        self._owner = owner
        self._under_way = 0
        owner.handle(DCUTR_PROTOCOL, self._handle)

    async def upgrade(self, connection: SwarmConn) -> None:
        """We were called through a relay: try to do without it. Never raises what goes wrong."""
        if self._under_way >= PUNCHES_AT_ONCE:
            return
        self._under_way += 1
        peer = peer_of(connection)
        try:
            for number in range(TRIES):
                with suppress(NetError, RemoteProtocolError):
                    await self._try_upgrade(connection, peer)
                if self._owner.is_direct(peer) or mux_of(connection).is_closed:
                    return
                await trio.sleep(PAUSE_S * (number + 1))
            log.info("hole_punch_failed", peer=peer)
        finally:
            self._under_way -= 1

    async def _try_upgrade(self, connection: SwarmConn, peer: PeerId) -> None:
        """Raises NetError, RemoteProtocolError."""
        relay = mux_of(connection).origin.relay
        assert relay is not None
        ours = await self._our_places(relay)
        with trio.move_on_after(PUNCH_WITHIN_S):
            stream = await negotiate(connection, peer, DCUTR_PROTOCOL)
            try:
                asked_at = trio.current_time()
                await send_message(stream, _connect(ours).encode())
                theirs = _places_of(await receive_message(stream))
                round_trip_s = trio.current_time() - asked_at
                await send_message(stream, PunchMessage(PunchKind.SYNC).encode())
            finally:
                with trio.CancelScope(shield=True):
                    await stream.aclose()
            # The message takes half a round trip; the other side dials when it comes.
            await trio.sleep(round_trip_s / 2)
            await self._punch(peer, theirs, is_client=False)

    async def _handle(self, stream: Stream) -> None:
        """The party that we have called wants to do without the relay."""
        relay = stream.origin.relay
        if relay is None or self._under_way >= PUNCHES_AT_ONCE:
            await stream.reset()
            return
        self._under_way += 1
        try:
            theirs = _places_of(await receive_message(stream))
            await send_message(stream, _connect(await self._our_places(relay)).encode())
            if PunchMessage.parse(await receive_message(stream)).kind != PunchKind.SYNC:
                raise RemoteProtocolError("this is no SYNC", code=Code.MALFORMED)
            with trio.move_on_after(PUNCH_WITHIN_S), suppress(ConnectFailed):
                await self._punch(stream.peer, theirs, is_client=True)
        finally:
            self._under_way -= 1

    async def _our_places(self, relay: PeerId) -> list[str]:
        """Where we can perhaps be dialled: as the relay sees us, and where we listen publicly."""
        seen = await self._owner.observations.seen_by(relay)
        return [*([seen] if seen else []), *self._owner.direct_places()]

    async def _punch(self, peer: PeerId, places: Sequence[str], *, is_client: bool) -> None:
        """Dial all places at once; the first handshake that succeeds makes the connection, and the
        other dials end. The party that called is the client of it, as if it alone had dialled.

        Raises ConnectFailed if none succeeds.
        """
        listeners = await self._owner.listen_where_we_dial() if is_client else []
        try:
            async with trio.open_nursery() as dials:
                for listener in listeners:
                    dials.start_soon(self._accept_from, listener, peer, dials.cancel_scope)
                for place in places[:PUNCHED_ADDRESSES_MAX]:
                    dials.start_soon(self._punch_at, peer, place, is_client, dials.cancel_scope)
        finally:
            for listener in listeners:
                await trio.aclose_forcefully(listener)
        if not self._owner.is_direct(peer):
            raise ConnectFailed(f"{peer} cannot be reached without a relay")

    async def _punch_at(
        self, peer: PeerId, place: str, is_client: bool, all_dials: trio.CancelScope
    ) -> None:
        with suppress(NetError):
            pipe = await self._owner.dial_from_port(place)
            await self._keep(pipe, peer, place, is_client, all_dials)

    async def _accept_from(
        self, listener: trio.SocketListener, peer: PeerId, all_dials: trio.CancelScope
    ) -> None:
        """The other side's router may send from another place than it told, and ours let it in."""
        for _ in range(PUNCHED_BACKLOG):
            pipe = BufferedTcp(await listener.accept())
            with suppress(NetError):
                await self._keep(pipe, peer, "our own port", True, all_dials)

    async def _keep(
        self,
        pipe: BufferedTcp,
        peer: PeerId,
        place: str,
        is_client: bool,
        all_dials: trio.CancelScope,
    ) -> None:
        """Shake hands over what was dialled, and keep the connection. Raises NetError."""
        if is_client:
            raw = RawConnection(pipe, True)
            connection = await self._owner.handshakes.as_client(pipe, raw, peer, place=place)
        else:
            connection = await self._as_server(pipe, peer)
        self._owner.adopt(peer, connection, local_host=local_host_of(pipe.stream))
        log.info("hole_punched", peer=peer, place=place)
        all_dials.cancel()

    async def _as_server(self, pipe: BufferedTcp, peer: PeerId) -> SwarmConn:
        connection = None
        try:
            connection = await self._owner.handshakes.as_server(RawConnection(pipe, False))
        finally:
            if connection is None:
                await pipe.abort()
        if connection is None or peer_of(connection) != peer:
            if connection is not None:
                await connection.close()
            raise ConnectFailed(f"another party than {peer} answered")
        return connection


def _connect(places: Sequence[str]) -> PunchMessage:
    found = places[:ADDRESSES_READ_MAX]
    return PunchMessage(PunchKind.CONNECT, tuple(Multiaddr(place).to_bytes() for place in found))


def _places_of(data: bytes) -> list[str]:
    """The TCP addresses of a CONNECT, without identities. Raises RemoteProtocolError."""
    message = PunchMessage.parse(data)
    if message.kind != PunchKind.CONNECT:
        raise RemoteProtocolError("this is no CONNECT", code=Code.MALFORMED)
    places = []
    for address in message.addresses:
        with suppress(ValueError, NetError):
            place = str(Multiaddr(address)).partition("/p2p/")[0]
            check_tcp(place)
            places.append(place)
    return list(dict.fromkeys(places))
