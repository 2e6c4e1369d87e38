"""Streams of libp2p as our contract wants them, and how they are opened and served.

Once a protocol is agreed on, bytes go past the library straight to our Yamux: its stream object
takes a lock before every call to keep a state that Yamux has anyway.
"""

from collections import Counter
from collections.abc import Awaitable, Callable

import trio
from libp2p.abc import INetStream
from libp2p.network.connection.swarm_connection import SwarmConn
from libp2p.network.stream.net_stream import NetStream
from libp2p.protocol_muxer.multiselect_communicator import MultiselectCommunicator
from libp2p.stream_muxer.exceptions import (
    MuxedStreamClosed,
    MuxedStreamEOF,
    MuxedStreamReset,
)

from protocol.ids import PeerId
from protocol.net.buffers import Holding
from protocol.net.errors import ProtocolUnsupported, StreamClosed, StreamReset
from protocol.net.libp2p_yamux import Mux
from protocol.net.libp2p_yamux_stream import MuxStream
from protocol.net.serve import CLOSE_WITHIN_S, boundary, opening
from protocol.net.transport import (
    RECEIVE_BYTES_MAX,
    STREAMS_PER_CONNECTION_MAX,
    Handler,
    Origin,
)

MULTISTREAM = "/multistream/1.0.0"
NOT_AVAILABLE = "na"


class Libp2pStream:
    """One stream of a connection, after its protocol was agreed on."""

    def __init__(self, stream: NetStream) -> None:
        assert isinstance(stream.muxed_stream, MuxStream)
        assert isinstance(stream.muxed_stream.mux, Mux)
        self._library_stream = stream
        self._stream = stream.muxed_stream
        self.connection: Mux = stream.muxed_stream.mux
        self._peer = PeerId(str(self.connection.peer_id))

    @property
    def peer(self) -> PeerId:
        return self._peer

    @property
    def origin(self) -> Origin:
        return self.connection.origin

    @property
    def is_superseded(self) -> bool:
        return self.connection.is_retiring

    @property
    def memory(self) -> Holding:
        return self.connection.memory

    async def send_all(self, data: bytes) -> None:
        try:
            await self._stream.write(data)
        except MuxedStreamReset as error:
            raise StreamReset(f"{self._peer}: {error}") from None
        except MuxedStreamClosed as error:
            raise StreamClosed(f"{self._peer}: {error}") from None

    def send_nowait(self, data: bytes) -> bool:
        return self._stream.write_nowait(data)

    async def receive_some(self, max_bytes: int = RECEIVE_BYTES_MAX) -> bytes:
        try:
            return await self._stream.read(max_bytes)
        except MuxedStreamEOF:
            if self._stream.discards:
                raise StreamClosed(f"the stream to {self._peer} was closed here") from None
            return b""
        except MuxedStreamReset as error:
            raise StreamReset(f"{self._peer}: {error}") from None
        except MuxedStreamClosed as error:
            raise StreamClosed(f"{self._peer}: {error}") from None

    async def send_eof(self) -> None:
        await self._stream.close()

    async def aclose(self) -> None:
        await self._stream.close_both()
        await self._library_stream.remove()

    async def reset(self) -> None:
        await self._stream.reset()
        await self._library_stream.remove()


async def negotiate(connection: SwarmConn, peer: PeerId, protocol_id: str) -> Libp2pStream:
    """Open a stream and agree on its protocol in one round trip: the library sends its greeting,
    waits for the peer's, and only then names the protocol.

    Raises ConnectFailed, ProtocolUnsupported.
    """
    with opening(f"{peer} takes no stream"):
        library_stream = await connection.new_stream()
    agreed = False
    talk = MultiselectCommunicator(library_stream)
    try:
        with opening(f"{peer} dropped a new stream"):
            await talk.write(MULTISTREAM)
            await talk.write(protocol_id)
            greeting, answer = await talk.read(), await talk.read()
        agreed = (greeting, answer) == (MULTISTREAM, protocol_id)
        if not agreed:
            refused = answer == NOT_AVAILABLE
            reason = "does not speak" if refused else f"answered {answer[:40]!r} when asked for"
            raise ProtocolUnsupported(f"{peer} {reason} {protocol_id}")
    finally:
        if not agreed:
            with trio.move_on_after(CLOSE_WITHIN_S) as scope:
                scope.shield = True
                await library_stream.reset()
    return Libp2pStream(library_stream)


def handler_for(
    handler: Handler, protocol_id: str, counts: Counter[str]
) -> Callable[[INetStream], Awaitable[None]]:
    """What the library calls for each new stream of a protocol."""

    async def serve(library_stream: INetStream) -> None:
        assert isinstance(library_stream, NetStream)
        stream = Libp2pStream(library_stream)
        if len(stream.connection.streams) > STREAMS_PER_CONNECTION_MAX:
            await stream.reset()
            return
        counts["streams_accepted"] += 1
        guard = boundary(handler, protocol_id)
        await guard.run(stream)
        counts["handlers_failed"] += guard.failures

    return serve
