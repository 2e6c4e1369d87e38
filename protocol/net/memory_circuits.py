"""What a `MemoryTransport` has to do with relays: being one, having a place at one, and calling
through one.

The talk with the relay is the real one. What would be a handshake over the circuit is a number that
the caller sends through it; the connection that results has the delay of both ways, ends with its
circuit, and does not count against the relay's bytes.
"""

import math
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from protocol.ids import PeerId
from protocol.net.circuit_messages import HOP_PROTOCOL, STOP_PROTOCOL
from protocol.net.circuits import CallTaker, CircuitCall, call_through
from protocol.net.errors import ConnectFailed, StreamClosed
from protocol.net.memory_connection import MemoryConnection
from protocol.net.relay import Relay
from protocol.net.relay_places import RelayLimits
from protocol.net.reservations import KeptReservation, Reservations
from protocol.net.transport import Stream

if TYPE_CHECKING:
    from protocol.net.memory_transport import MemoryTransport

_NUMBER_BYTES = 8
_JOINED = b"\x01"


class MemoryCircuits:
    """The circuits of one transport."""

    def __init__(self, owner: "MemoryTransport", limits: RelayLimits | None) -> None:
        self._owner = owner
        self._relay: Relay | None = None
        self._places = Reservations(owner, owner.network.clock, read_address=bytes.decode)
        taker = CallTaker(self._places.holds_place_at, self._serve_call)
        owner.handle(STOP_PROTOCOL, taker.handle_stop)
        if limits is not None:
            self._relay = Relay(owner, limits, owner.network.clock, addresses=self._own_addresses)
            owner.handle(HOP_PROTOCOL, self._relay.handle_hop)

    @property
    def addresses(self) -> tuple[str, ...]:
        return self._places.addresses

    def keep(
        self, relay_address: str, on_change: Callable[[], None], nursery: trio.Nursery
    ) -> KeptReservation:
        return self._places.keep(relay_address, on_change, nursery)

    def forget(self, peer: PeerId) -> None:
        if self._relay is not None:
            self._relay.forget(peer)

    def statistics(self) -> dict[str, int]:
        return {} if self._relay is None else self._relay.statistics()

    async def dial(self, relay_address: str, peer: PeerId) -> None:
        """Connect to `peer` through a relay. Raises NetError."""
        relay = await self._owner.connect(relay_address, timeout_s=math.inf)
        call = await call_through(self._owner, relay, peer, timeout_s=math.inf)
        network = self._owner.network
        number = next(network.numbers)
        network.callers[number] = self._owner
        joined = False
        try:
            await call.stream.send_all(number.to_bytes(_NUMBER_BYTES))
            joined = await call.stream.receive_some(1) == _JOINED
            if not joined:
                raise ConnectFailed(f"{peer} closed the circuit at once")
        finally:
            network.callers.pop(number, None)
            if not joined:
                await call.stream.reset()
        connection = self._owner.connection_through(relay, peer)
        if connection is None:
            # A direct connection was there first, or it has broken at once.
            await call.stream.reset()
        else:
            self._owner.start_soon(self._hold, call.stream, connection)

    async def _serve_call(self, call: CircuitCall, prove: Callable[[], None]) -> None:
        number = b""
        while len(number) < _NUMBER_BYTES:
            piece = await call.stream.receive_some(_NUMBER_BYTES - len(number))
            if not piece:
                return
            number += piece
        caller = self._owner.network.callers.pop(int.from_bytes(number), None)
        if caller is None or caller.peer_id != call.peer:
            return
        connection = self._owner.join(caller, call.stream.peer)
        prove()
        await call.stream.send_all(_JOINED)
        await self._hold(call.stream, connection)

    async def _hold(self, stream: Stream, connection: MemoryConnection) -> None:
        """The circuit and the connection over it end together."""
        try:
            with connection.circuit, suppress(StreamClosed):
                # No more bytes come through it.
                await stream.receive_some()
            if connection.mate is not None:
                self._owner.drop(connection, "the circuit ended")
        finally:
            with trio.CancelScope(shield=True):
                await stream.reset()

    def _own_addresses(self) -> list[bytes]:
        return [address.encode() for address in self._owner.addresses]
