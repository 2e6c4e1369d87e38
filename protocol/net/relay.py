"""The relay: it lends peers behind routers a place where others can reach them, and carries bytes
between the two. What passes is encrypted from end to end; a relay reads none of it.

Source: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md
"""

from collections import Counter
from collections.abc import Callable, Sequence

import structlog
import trio

from protocol.clock import Clock
from protocol.errors import RemoteProtocolError
from protocol.ids import PeerId
from protocol.net.circuit_messages import (
    CIRCUIT_MESSAGE_WITHIN_S,
    STOP_PROTOCOL,
    CircuitStatus,
    GrantedPlace,
    HopKind,
    HopMessage,
    StopKind,
    StopMessage,
    describe_status,
    receive_message,
    send_message,
)
from protocol.net.errors import ConnectFailed, NetError, StreamClosed
from protocol.net.relay_places import Circuit, PlacesTaken, RelayLimits, RelayPlaces
from protocol.net.transport import Stream, Transport

log = structlog.get_logger(__name__)

# One piece on its way. Nothing more is read of a stream before its last piece was taken by the
# other, so a circuit holds what its two windows hold, and this.
PIECE_BYTES = 64 * 1024


class Relay:
    """Serves HOP streams of `transport`. `addresses` are its own, as binary multiaddrs."""

    def __init__(
        self,
        transport: Transport,
        limits: RelayLimits,
        clock: Clock,
        *,
        addresses: Callable[[], Sequence[bytes]],
    ) -> None:
        self._counts: Counter[str] = Counter()
        self._transport = transport
        self._limits = limits
        self._clock = clock
        self._addresses = addresses
        self._places = RelayPlaces(limits)
        self._lives: dict[Circuit, trio.CancelScope] = {}

    def statistics(self) -> dict[str, int]:
        """Fields of TransportStatistics."""
        gauges = {"reservations": self._places.reservations, "circuits": self._places.circuits}
        return gauges | self._counts

    def forget(self, peer: PeerId) -> None:
        """The last connection of a peer has ended, and so does its place."""
        self._places.forget(peer)

    async def handle_hop(self, stream: Stream) -> None:
        """A peer wants a place here, or a circuit to one that has a place."""
        try:
            message = HopMessage.parse(await receive_message(stream))
        except RemoteProtocolError:
            await _answer(stream, CircuitStatus.MALFORMED_MESSAGE)
            raise
        if stream.origin.relay is not None:
            # A relay of relays would hide who asks, and carry the same bytes twice.
            await self._refuse(stream, CircuitStatus.PERMISSION_DENIED)
        elif message.kind == HopKind.RESERVE:
            await self._reserve(stream)
        elif message.kind == HopKind.CONNECT and message.peer is not None:
            await self._connect(stream, message.peer)
        else:
            await self._refuse(stream, CircuitStatus.UNEXPECTED_MESSAGE)

    async def _reserve(self, stream: Stream) -> None:
        """Whom the message names does not matter: the place is for the peer that asks."""
        if not self._places.reserve(stream.peer, stream.origin, now_s=trio.current_time()):
            await self._refuse(stream, CircuitStatus.RESERVATION_REFUSED)
            return
        expires_at_s = self._clock.now_ms() // 1000 + self._limits.reservation_s
        place = GrantedPlace(expires_at_s, tuple(self._addresses()))
        answer = HopMessage(
            HopKind.STATUS, place=place, limit=self._limits.of_circuit, status=CircuitStatus.OK
        )
        await send_message(stream, answer.encode())

    async def _connect(self, stream: Stream, target: PeerId) -> None:
        if not self._places.is_reserved(target, now_s=trio.current_time()):
            await self._refuse(stream, CircuitStatus.NO_RESERVATION)
            return
        try:
            circuit, ended = self._places.open(stream.peer, target, stream.origin)
        except PlacesTaken:
            await self._refuse(stream, CircuitStatus.RESOURCE_LIMIT_EXCEEDED)
            return
        try:
            for each in ended:
                self._lives[each].cancel()
            with trio.CancelScope() as self._lives[circuit]:
                await self._carry_circuit(stream, target)
                return
            raise StreamClosed(f"the circuit from {stream.peer} to {target} was ended")
        finally:
            del self._lives[circuit]
            self._places.close(circuit)

    async def _carry_circuit(self, source: Stream, target_peer: PeerId) -> None:
        try:
            target = await self._call(target_peer, source.peer)
        except (NetError, RemoteProtocolError) as error:
            log.info("circuit_failed", source=source.peer, target=target_peer, error=str(error))
            await self._refuse(source, CircuitStatus.CONNECTION_FAILED)
            return
        finished = False
        try:
            answer = HopMessage(
                HopKind.STATUS, limit=self._limits.of_circuit, status=CircuitStatus.OK
            )
            await send_message(source, answer.encode())
            await self._join(source, target)
            finished = True
        finally:
            if not finished:
                with trio.CancelScope(shield=True):
                    await target.reset()
        await target.aclose()

    async def _call(self, peer: PeerId, caller: PeerId) -> Stream:
        """A stream to the holder of a place, which takes the call of `caller`.

        Raises NetError, RemoteProtocolError.
        """
        stream = await self._transport.open_stream(
            peer, STOP_PROTOCOL, timeout_s=CIRCUIT_MESSAGE_WITHIN_S
        )
        taken = False
        try:
            if stream.origin.relay is not None:
                raise ConnectFailed(f"{peer} is itself behind a relay")
            call = StopMessage(StopKind.CONNECT, peer=caller, limit=self._limits.of_circuit)
            await send_message(stream, call.encode())
            answer = StopMessage.parse(await receive_message(stream))
            taken = (answer.kind, answer.status) == (StopKind.STATUS, CircuitStatus.OK)
            if not taken:
                raise ConnectFailed(f"{peer} takes no call: {describe_status(answer.status)}")
        finally:
            if not taken:
                with trio.CancelScope(shield=True):
                    await stream.reset()
        return stream

    async def _join(self, source: Stream, target: Stream) -> None:
        """Until both have ended their side. Raises StreamClosed when either breaks, or at a limit:
        then the caller resets both."""
        with trio.move_on_after(self._limits.circuit_s):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pass_on, source, target)
                nursery.start_soon(self._pass_on, target, source)
            return
        raise StreamClosed("the circuit's time is up")

    async def _pass_on(self, source: Stream, target: Stream) -> None:
        left = self._limits.circuit_bytes_max
        while data := await source.receive_some(PIECE_BYTES):
            left -= len(data)
            if left < 0:
                raise StreamClosed("the circuit has carried as much as it may")
            await target.send_all(data)
            self._counts["relayed_bytes"] += len(data)
        await target.send_eof()

    async def _refuse(self, stream: Stream, status: CircuitStatus) -> None:
        self._counts["circuits_refused"] += 1
        log.debug("relay_refused", peer=stream.peer, status=describe_status(status))
        await _answer(stream, status)


async def _answer(stream: Stream, status: CircuitStatus) -> None:
    await send_message(stream, HopMessage(HopKind.STATUS, status=status).encode())
