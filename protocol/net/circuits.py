"""A peer's side of circuits: calling another through a relay, and being called where we hold a
place. The result is a stream of bytes to the other peer; making a connection of it is the
transport's affair."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import trio

from protocol.errors import RemoteProtocolError
from protocol.ids import PeerId
from protocol.net.circuit_messages import (
    HOP_PROTOCOL,
    CircuitLimit,
    CircuitStatus,
    HopKind,
    HopMessage,
    StopKind,
    StopMessage,
    describe_status,
    receive_message,
    send_message,
)
from protocol.net.errors import Backpressure, ConnectFailed, ProtocolUnsupported, StreamClosed
from protocol.net.transport import Stream, Transport

# Callers whose handshake is not done. Each may take HANDSHAKE_WITHIN_S, and buyers come one by one.
CALLS_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class CircuitCall:
    """A circuit that stands: bytes to `peer` through the relay at the stream's other end. That the
    peer is who the relay says must be proven over it."""

    stream: Stream
    peer: PeerId
    limit: CircuitLimit


async def call_through(
    transport: Transport, relay: PeerId, peer: PeerId, *, timeout_s: float
) -> CircuitCall:
    """Ask a relay, to which we are connected, for a circuit to `peer`.

    Raises ConnectFailed, NetTimeout.
    """
    try:
        stream = await transport.open_stream(relay, HOP_PROTOCOL, timeout_s=timeout_s)
    except (ProtocolUnsupported, Backpressure) as error:
        raise ConnectFailed(f"{relay} is no relay for us: {error}") from error
    connected = False
    try:
        if stream.origin.relay is not None:
            raise ConnectFailed(f"the relay {relay} is itself behind a relay")
        try:
            await send_message(stream, HopMessage(HopKind.CONNECT, peer=peer).encode())
            answer = HopMessage.parse(await receive_message(stream))
        except (StreamClosed, RemoteProtocolError) as error:
            raise ConnectFailed(f"{relay} makes no circuit to {peer}: {error}") from error
        connected = (answer.kind, answer.status) == (HopKind.STATUS, CircuitStatus.OK)
        if not connected:
            reason = describe_status(answer.status)
            raise ConnectFailed(f"{relay} makes no circuit to {peer}: {reason}")
    finally:
        if not connected:
            with trio.CancelScope(shield=True):
                await stream.reset()
    return CircuitCall(stream, peer, answer.limit or CircuitLimit())


class CallTaker:
    """Serves STOP streams: only relays at which we hold a place may bring us calls.

    `serve` has the call until its circuit is over; it calls its second argument once the caller has
    proven who it is.
    """

    def __init__(
        self,
        holds_place: Callable[[PeerId], bool],
        serve: Callable[[CircuitCall, Callable[[], None]], Awaitable[None]],
    ) -> None:
        self._holds_place = holds_place
        self._serve = serve
        self._unproven = 0

    async def handle_stop(self, stream: Stream) -> None:
        try:
            message = StopMessage.parse(await receive_message(stream))
        except RemoteProtocolError:
            await _answer(stream, CircuitStatus.MALFORMED_MESSAGE)
            raise
        if message.kind != StopKind.CONNECT or message.peer is None:
            await _answer(stream, CircuitStatus.UNEXPECTED_MESSAGE)
        elif stream.origin.relay is not None or not self._holds_place(stream.peer):
            await _answer(stream, CircuitStatus.PERMISSION_DENIED)
        elif self._unproven >= CALLS_AT_ONCE:
            await _answer(stream, CircuitStatus.RESOURCE_LIMIT_EXCEEDED)
        else:
            await self._take(CircuitCall(stream, message.peer, message.limit or CircuitLimit()))

    async def _take(self, call: CircuitCall) -> None:
        is_proven = False

        def prove() -> None:
            nonlocal is_proven
            if not is_proven:
                self._unproven -= 1
            is_proven = True

        self._unproven += 1
        try:
            await _answer(call.stream, CircuitStatus.OK)
            await self._serve(call, prove)
        finally:
            prove()


async def _answer(stream: Stream, status: CircuitStatus) -> None:
    await send_message(stream, StopMessage(StopKind.STATUS, status=status).encode())
