"""How a `MemoryTransport` calls and is called through relays.

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
from protocol.net.circuits import CircuitCall, call_through
from protocol.net.errors import ConnectFailed, StreamClosed
from protocol.net.memory_connection import MemoryConnection
from protocol.net.relay_places import RelayLimits
from protocol.net.transport import Stream
from protocol.net.transport_circuits import TransportCircuits

if TYPE_CHECKING:
    from protocol.net.memory_transport import MemoryTransport

_NUMBER_BYTES = 8
_JOINED = b"\x01"


class MemoryCircuits(TransportCircuits):
    """The circuits of one transport."""

    def __init__(self, owner: "MemoryTransport", limits: RelayLimits | None) -> None:
        super().__init__(owner, limits, owner.network.clock)
        self._owner = owner

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

    def _read_address(self, data: bytes) -> str | None:
        return data.decode()
