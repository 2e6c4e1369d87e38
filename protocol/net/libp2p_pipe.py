"""The bytes of a circuit as py-libp2p wants those of a connection, and how it knows them again."""

import trio
from libp2p.abc import ISecureConn
from libp2p.connection_types import ConnectionType
from libp2p.io.abc import ReadWriteCloser
from libp2p.io.exceptions import ConnectionClosedError
from libp2p.network.connection.raw_connection import RawConnection
from multiaddr import Multiaddr

from protocol.ids import PeerId
from protocol.net.addresses import CIRCUIT, host_of, split_peer_id
from protocol.net.circuits import CircuitCall
from protocol.net.errors import StreamClosed
from protocol.net.shares import block_of
from protocol.net.transport import Origin

# A circuit that has used this share of what its relay grants takes no more streams.
SPENT_SHARE = 0.8


class CircuitPipe(ReadWriteCloser):
    """The circuit of a call. One task reads and one writes. `spent` is set when it has carried most
    of what it may, or stood for most of its time: `watch` must run for that."""

    def __init__(self, call: CircuitCall) -> None:
        self.spent = trio.Event()
        self._stream = call.stream
        self._limit = call.limit
        self._buffer = b""
        self._came_bytes = 0
        self._went_bytes = 0

    async def read(self, n: int | None = None) -> bytes:
        if n == 0:
            return b""
        if not self._buffer:
            try:
                self._buffer = await self._stream.receive_some()
            except StreamClosed as error:
                raise ConnectionClosedError(f"the circuit broke: {error}") from error
            self._came_bytes += len(self._buffer)
            self._count()
        if n is None or n >= len(self._buffer):
            data, self._buffer = self._buffer, b""
        else:
            data, self._buffer = self._buffer[:n], self._buffer[n:]
        return data

    async def write(self, data: bytes) -> None:
        if self._stream.send_nowait(data):
            await trio.lowlevel.cancel_shielded_checkpoint()
        else:
            try:
                await self._stream.send_all(data)
            except StreamClosed as error:
                raise ConnectionClosedError(f"the circuit is gone: {error}") from error
        self._went_bytes += len(data)
        self._count()

    async def close(self) -> None:
        await self._stream.aclose()

    async def abort(self) -> None:
        """End it in the middle of a handshake."""
        with trio.CancelScope(shield=True):
            await self._stream.reset()

    def get_remote_address(self) -> tuple[str, int] | None:
        """The relay's is not the peer's, and would be told to it as its own."""
        return None

    async def watch(self) -> None:
        """Until it is spent."""
        with trio.move_on_after(self._limit.duration_s * SPENT_SHARE or float("inf")):
            await self.spent.wait()
        self.spent.set()

    def _count(self) -> None:
        most = max(self._came_bytes, self._went_bytes)
        if self._limit.data_bytes and most > self._limit.data_bytes * SPENT_SHARE:
            self.spent.set()


def raw_connection_over(
    pipe: CircuitPipe, relay_place: str, relay: PeerId, *, is_initiator: bool
) -> RawConnection:
    """Named by the relay that it passes through, without the peer, which is still to be proven."""
    name = Multiaddr(f"{relay_place}/p2p/{relay}{CIRCUIT}")
    return RawConnection(pipe, is_initiator, ConnectionType.RELAYED, [name])


def origin_of(conn: ISecureConn) -> Origin:
    """Where a connection comes from, by its socket or by its name."""
    if conn.get_connection_type() is not ConnectionType.RELAYED:
        remote = conn.get_remote_address()
        return Origin(block_of(remote[0] if remote is not None else ""))
    name = str(conn.get_transport_addresses()[0])
    place, relay = split_peer_id(name.partition(CIRCUIT)[0])
    return Origin(block_of(host_of(place)), relay)
