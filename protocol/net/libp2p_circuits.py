"""How a `Libp2pTransport` calls and is called through relays. Noise and Yamux run over the circuit,
so that its relay reads nothing."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
import trio
from multiaddr import Multiaddr

from protocol.ids import PeerId
from protocol.net.addresses import check_tcp, split_peer_id
from protocol.net.circuits import CircuitCall, call_through
from protocol.net.clock import SystemClock
from protocol.net.errors import NetError
from protocol.net.libp2p_admission import HANDSHAKE_WITHIN_S
from protocol.net.libp2p_connections import mux_of, peer_of
from protocol.net.libp2p_pipe import CircuitPipe, raw_connection_over
from protocol.net.libp2p_punch import HolePunches
from protocol.net.relay_places import RelayLimits
from protocol.net.transport_circuits import TransportCircuits

if TYPE_CHECKING:
    from libp2p.network.connection.swarm_connection import SwarmConn

    from protocol.net.libp2p import Libp2pTransport

log = structlog.get_logger(__name__)


class Libp2pCircuits(TransportCircuits):
    """The circuits of one transport. `tells` says whether a place, without /p2p/, is one that
    strangers would dial."""

    def __init__(
        self,
        owner: "Libp2pTransport",
        limits: RelayLimits | None,
        *,
        tells: Callable[[str], bool],
        does_without_relays: bool,
    ) -> None:
        super().__init__(owner, limits, SystemClock())
        self._owner = owner
        self._tells = tells
        self._punches = HolePunches(owner)
        self._does_without_relays = does_without_relays

    async def dial(self, relay_place: str, relay: PeerId, peer: PeerId) -> None:
        """Connect to `peer` through the relay at a place. Raises NetError."""
        owner = self._owner
        await owner.connect(f"{relay_place}/p2p/{relay}", timeout_s=math.inf)
        # The callee will ask at once where it can meet us.
        owner.start_soon(owner.observations.seen_by, relay)
        call = await call_through(owner, relay, peer, timeout_s=math.inf)
        pipe = CircuitPipe(call)
        raw = raw_connection_over(pipe, relay_place, relay, is_initiator=True)
        connection = await owner.handshakes.as_client(pipe, raw, peer, place=f"relay {relay}")
        owner.adopt(peer, connection)
        owner.start_soon(self._retire_when_spent, pipe, connection)

    async def _serve_call(self, call: CircuitCall, prove: Callable[[], None]) -> None:
        """A peer calls: shake hands, and carry the connection until it ends."""
        relay, pipe = call.stream.peer, CircuitPipe(call)
        place = self._owner.place_of(relay)
        raw = raw_connection_over(pipe, place, relay, is_initiator=False)
        connection = None
        with trio.move_on_after(HANDSHAKE_WITHIN_S):
            connection = await self._owner.handshakes.as_server(raw)
        if connection is None:
            await pipe.abort()
            return
        prove()
        peer = peer_of(connection)
        if peer != call.peer or not self._owner.admit(connection):
            log.info("call_refused", relay=relay, peer=peer, said=call.peer)
            await connection.close()
            return
        self._owner.start_soon(self._retire_when_spent, pipe, connection)
        if self._does_without_relays:
            self._owner.start_soon(self._punches.upgrade, connection)
        await self._owner.carry_inbound(peer, connection)

    async def _retire_when_spent(self, pipe: CircuitPipe, connection: "SwarmConn") -> None:
        """New streams go through another circuit before the relay cuts this one."""
        async with trio.open_nursery() as nursery:

            async def until_closed() -> None:
                await mux_of(connection).event_closed.wait()
                nursery.cancel_scope.cancel()

            nursery.start_soon(until_closed)
            await pipe.watch()
            await self._owner.retire(connection)

    def _own_addresses(self) -> list[bytes]:
        return [Multiaddr(address).to_bytes() for address in self._owner.announced]

    def _read_address(self, data: bytes) -> str | None:
        try:
            address = str(Multiaddr(data))
            place, _ = split_peer_id(address)
            check_tcp(place)
        except (ValueError, NetError):
            return None
        return address if self._tells(place) else None
