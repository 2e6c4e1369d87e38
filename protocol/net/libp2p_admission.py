"""Who may have a socket here: strangers before their handshake, and connections after it.

Before a handshake a peer is not known, so places are shared out by address block, a stranger has
a deadline for its first byte and one for the whole handshake, and the one that has been silent for
longest gives way. Handshakes cost CPU; blocks take turns at it.
"""

import structlog
import trio

from protocol.net.descriptors import network_descriptors, raise_descriptor_limit
from protocol.net.libp2p_tcp import BufferedTcp, remote_place_of
from protocol.net.libp2p_yamux import Mux
from protocol.net.shares import Shares, block_of
from protocol.net.turns import GroupTurns, Turn

log = structlog.get_logger(__name__)

# Established connections. A coordinator of the largest network we aim at, with room; each costs
# about a megabyte.
CONNECTIONS_MAX = 2048
# One party has one connection in each direction, and another while it reconnects.
CONNECTIONS_PER_PEER_MAX = 8
# Sockets without a finished handshake.
STRANGERS_MAX = 1024
# All nodes of a network come back within a second when their coordinator restarts, at 5–10 ms of
# CPU for each handshake: started all at once, they would all be late.
HANDSHAKES_AT_ONCE = 64
# A handshake that waits for its peer gives up its turn after this and goes on without one.
TURN_S = 0.5

# Both sides of a handshake begin at once, so the first byte comes with the round trip.
FIRST_BYTE_WITHIN_S = 3.0
# Three round trips and the wait for a turn; a peer that needs longer is of no use.
HANDSHAKE_WITHIN_S = 10.0
# A stranger silent for this long may give its place to another of its own block.
QUIET_AFTER_S = 0.5
# A connection without data for this long may do the same.
IDLE_AFTER_S = 30.0


class Stranger:
    """A socket whose peer has not yet proven who it is."""

    def __init__(self, stream: trio.SocketStream) -> None:
        host, _ = remote_place_of(stream) or ("", 0)
        self.block = block_of(host)
        # trio's time of its last byte. One that never sent any gives way first.
        self.heard_at = 0.0
        self.came_at = trio.current_time()
        self.life = trio.CancelScope(deadline=self.came_at + HANDSHAKE_WITHIN_S)
        self.tcp = BufferedTcp(stream, on_read=self._on_read)

    @property
    def is_silent(self) -> bool:
        last = max(self.heard_at, self.came_at)
        return trio.current_time() - last >= QUIET_AFTER_S

    def _on_read(self) -> None:
        self.heard_at = trio.current_time()


class SocketPlaces:
    """Places for strangers and for connections of one transport."""

    def __init__(self, *, strangers_max: int, connections_max: int) -> None:
        self._strangers: Shares[Stranger] = Shares(
            strangers_max,
            rank=lambda each: each.heard_at or each.came_at - 1e9,
            is_spare=lambda each: each.is_silent,
        )
        self._connections: Shares[Mux] = Shares(
            connections_max,
            rank=lambda mux: mux.used_at,
            is_spare=lambda mux: trio.current_time() - mux.used_at >= IDLE_AFTER_S,
        )
        self._turns = GroupTurns(HANDSHAKES_AT_ONCE)
        self.strangers_evicted = 0
        self.strangers_refused = 0
        self.connections_evicted = 0

    @classmethod
    def of_this_process(cls) -> "SocketPlaces":
        """As many places as there are descriptors for."""
        places = network_descriptors(raise_descriptor_limit())
        strangers_max = min(STRANGERS_MAX, max(8, places // 3))
        connections_max = min(CONNECTIONS_MAX, max(8, places - strangers_max))
        return cls(strangers_max=strangers_max, connections_max=connections_max)

    def take_in(self, stream: trio.SocketStream) -> Stranger | None:
        """A place for a socket that was just accepted; None if it has to be closed at once."""
        stranger = Stranger(stream)
        ended = self._strangers.make_room(stranger.block)
        if ended is None:
            self.strangers_refused += 1
            log.debug("stranger_refused", block=stranger.block, strangers=len(self._strangers))
            return None
        for each in ended:
            self.strangers_evicted += 1
            each.life.cancel()
        self._strangers.add(stranger, stranger.block)
        return stranger

    def leave(self, stranger: Stranger) -> None:
        """Its handshake is over, or it was ended."""
        self._strangers.remove(stranger)

    async def wait_turn(self, stranger: Stranger, nursery: trio.Nursery) -> Turn | None:
        """Wait for the first byte, then for a turn. None if nothing came in time."""
        with trio.move_on_after(FIRST_BYTE_WITHIN_S) as scope:
            await stranger.tcp.wait_first()
        if scope.cancelled_caught:
            return None
        turn = await self._turns.wait(stranger.block)
        nursery.start_soon(_end_later, turn)
        return turn

    def admit(self, mux: Mux, *, is_inbound: bool) -> bool:
        """Count an established connection; False if there is no place for it. Connections that we
        dialled ourselves always have one."""
        ended = self._connections.make_room(mux.origin.block)
        if ended is None and is_inbound:
            log.info(
                "connection_refused", block=mux.origin.block, connections=len(self._connections)
            )
            return False
        for each in ended or ():
            self.connections_evicted += 1
            log.info("connection_evicted", peer=str(each.peer_id), block=each.origin.block)
            each.drop()
        self._connections.add(mux, mux.origin.block)
        return True

    def dismiss(self, mux: Mux) -> None:
        """The connection is over."""
        self._connections.remove(mux)


async def _end_later(turn: Turn) -> None:
    await trio.sleep(TURN_S)
    turn.end()
