"""Where others see us: the outside of our router, as a peer's identify tells it.

Source: https://github.com/libp2p/specs/blob/master/identify/README.md
"""

from collections.abc import Callable

import trio
from libp2p.identity.identify import ID as IDENTIFY
from libp2p.network.connection.swarm_connection import SwarmConn
from multiaddr import Multiaddr

from protocol.errors import RemoteProtocolError
from protocol.ids import PeerId
from protocol.net.addresses import check_tcp
from protocol.net.circuit_messages import receive_message
from protocol.net.errors import NetError
from protocol.net.libp2p_connections import mux_of
from protocol.net.libp2p_stream import negotiate
from protocol.net.protobuf import ProtobufFields

_OBSERVED_FIELD = 4
# Keys, addresses and a signed record of them.
IDENTIFY_BYTES_MAX = 16 * 1024
OBSERVED_WITHIN_S = 3.0


class Observations:
    """What peers say of where we are. `live` gives the connection to a peer that we use."""

    def __init__(self, live: Callable[[PeerId], SwarmConn | None]) -> None:
        self._live = live
        # By connection: a new one may come from elsewhere.
        self._seen: dict[SwarmConn, str] = {}

    async def seen_by(self, peer: PeerId) -> str:
        """The place, without /p2p/, that a directly connected peer sees us at; empty if it does not
        say."""
        connection = self._live(peer)
        if connection is None or mux_of(connection).origin.relay is not None:
            return ""
        if connection not in self._seen:
            self._forget_closed()
            with trio.move_on_after(OBSERVED_WITHIN_S):
                self._seen[connection] = await _ask(connection, peer)
        return self._seen.get(connection, "")

    def _forget_closed(self) -> None:
        for connection in [each for each in self._seen if mux_of(each).is_closed]:
            del self._seen[connection]


async def _ask(connection: SwarmConn, peer: PeerId) -> str:
    try:
        stream = await negotiate(connection, peer, str(IDENTIFY))
        try:
            answer = await receive_message(stream, bytes_max=IDENTIFY_BYTES_MAX)
        finally:
            with trio.CancelScope(shield=True):
                await stream.aclose()
        place = str(Multiaddr(ProtobufFields(answer).data(_OBSERVED_FIELD) or b""))
        check_tcp(place)
    except (NetError, RemoteProtocolError, ValueError):
        return ""
    return place
