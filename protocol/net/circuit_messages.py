"""What is said to and by a relay, and between two peers that want to do without it.

Source: https://github.com/libp2p/specs/blob/master/relay/circuit-v2.md and DCUtR.md beside it.
"""

from dataclasses import dataclass
from enum import IntEnum

import base58
import trio

from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId, parse_peer_id
from protocol.net.errors import NetTimeout, StreamClosed
from protocol.net.protobuf import ProtobufFields, encode_field, encode_varint
from protocol.net.transport import Stream

HOP_PROTOCOL = "/libp2p/circuit/relay/0.2.0/hop"
STOP_PROTOCOL = "/libp2p/circuit/relay/0.2.0/stop"
DCUTR_PROTOCOL = "/libp2p/dcutr"

# What other implementations accept, too.
CIRCUIT_MESSAGE_BYTES_MAX = 4096
# A relay, or a peer, has at most so many addresses that we read.
ADDRESSES_READ_MAX = 16
# One message of a few hundred bytes on an open connection.
CIRCUIT_MESSAGE_WITHIN_S = 10.0

# Of the length before a message: enough for 2 MiB.
_LENGTH_BYTES_MAX = 3


class HopKind(IntEnum):
    RESERVE = 0
    CONNECT = 1
    STATUS = 2


class StopKind(IntEnum):
    CONNECT = 0
    STATUS = 1


class PunchKind(IntEnum):
    CONNECT = 100
    SYNC = 300


class CircuitStatus(IntEnum):
    """A relay's answer. Others than these count as a refusal."""

    OK = 100
    RESERVATION_REFUSED = 200
    RESOURCE_LIMIT_EXCEEDED = 201
    PERMISSION_DENIED = 202
    CONNECTION_FAILED = 203
    NO_RESERVATION = 204
    MALFORMED_MESSAGE = 400
    UNEXPECTED_MESSAGE = 401


@dataclass(frozen=True, slots=True)
class CircuitLimit:
    """How long a circuit may stand, and the bytes that may pass it in each direction; 0 for any."""

    duration_s: int = 0
    data_bytes: int = 0


@dataclass(frozen=True, slots=True)
class GrantedPlace:
    """A reservation as its relay grants it: until when, in seconds since 1970, and the relay's
    addresses, as binary multiaddrs."""

    expires_at_s: int
    addresses: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class HopMessage:
    """Between a peer and its relay."""

    kind: int
    peer: PeerId | None = None
    place: GrantedPlace | None = None
    limit: CircuitLimit | None = None
    status: int | None = None

    def encode(self) -> bytes:
        return (
            encode_field(1, self.kind)
            + encode_field(2, _encode_peer(self.peer))
            + encode_field(3, _encode_place(self.place))
            + encode_field(4, _encode_limit(self.limit))
            + encode_field(5, self.status)
        )

    @classmethod
    def parse(cls, data: bytes) -> "HopMessage":
        """Raises RemoteProtocolError (MALFORMED)."""
        fields = ProtobufFields(data)
        return cls(
            _parse_kind(fields),
            _parse_peer(fields.data(2)),
            _parse_place(fields.data(3)),
            _parse_limit(fields.data(4)),
            fields.number(5),
        )


@dataclass(frozen=True, slots=True)
class StopMessage:
    """Between a relay and the peer that holds a place there. `peer` wants to reach it."""

    kind: int
    peer: PeerId | None = None
    limit: CircuitLimit | None = None
    status: int | None = None

    def encode(self) -> bytes:
        return (
            encode_field(1, self.kind)
            + encode_field(2, _encode_peer(self.peer))
            + encode_field(3, _encode_limit(self.limit))
            + encode_field(4, self.status)
        )

    @classmethod
    def parse(cls, data: bytes) -> "StopMessage":
        """Raises RemoteProtocolError (MALFORMED)."""
        fields = ProtobufFields(data)
        return cls(
            _parse_kind(fields),
            _parse_peer(fields.data(2)),
            _parse_limit(fields.data(3)),
            fields.number(4),
        )


@dataclass(frozen=True, slots=True)
class PunchMessage:
    """Between two peers that a relay connects. `addresses` are binary multiaddrs."""

    kind: int
    addresses: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        addresses = b"".join(encode_field(2, address) for address in self.addresses)
        return encode_field(1, self.kind) + addresses

    @classmethod
    def parse(cls, data: bytes) -> "PunchMessage":
        """Raises RemoteProtocolError (MALFORMED)."""
        fields = ProtobufFields(data)
        return cls(_parse_kind(fields), tuple(fields.every(2)[:ADDRESSES_READ_MAX]))


async def send_message(stream: Stream, body: bytes) -> None:
    """Raises StreamClosed, NetTimeout if the peer does not take it."""
    with trio.move_on_after(CIRCUIT_MESSAGE_WITHIN_S):
        await stream.send_all(encode_varint(len(body)) + body)
        return
    raise NetTimeout(f"{stream.peer} takes no message")


async def receive_message(stream: Stream, *, bytes_max: int = CIRCUIT_MESSAGE_BYTES_MAX) -> bytes:
    """The next message, and not a byte more: what follows may belong to someone else.

    Raises RemoteProtocolError (MALFORMED), StreamClosed, NetTimeout.
    """
    with trio.move_on_after(CIRCUIT_MESSAGE_WITHIN_S):
        size = 0
        for index in range(_LENGTH_BYTES_MAX):
            byte = (await _receive_exactly(stream, 1))[0]
            size |= (byte & 0x7F) << 7 * index
            if byte < 0x80:
                break
        else:
            size = bytes_max + 1
        if size > bytes_max:
            raise RemoteProtocolError("a message is too long", code=Code.MALFORMED)
        return await _receive_exactly(stream, size)
    raise NetTimeout(f"{stream.peer} sent no message within {CIRCUIT_MESSAGE_WITHIN_S:g} s")


def describe_status(status: int | None) -> str:
    """For people: `no_reservation`, or the number that we do not know."""
    try:
        return CircuitStatus(status or 0).name.lower()
    except ValueError:
        return f"status {status}"


async def _receive_exactly(stream: Stream, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = await stream.receive_some(size - len(data))
        if not piece:
            raise StreamClosed(f"{stream.peer} ended the stream within a message")
        data += piece
    return data


def _parse_kind(fields: ProtobufFields) -> int:
    kind = fields.number(1)
    if kind is None:
        raise RemoteProtocolError("a message has no type", code=Code.MALFORMED)
    return kind


def _encode_peer(peer: PeerId | None) -> bytes | None:
    return None if peer is None else encode_field(1, base58.b58decode(peer))


def _parse_peer(data: bytes | None) -> PeerId | None:
    if data is None:
        return None
    return parse_peer_id(base58.b58encode(ProtobufFields(data).data(1) or b"").decode())


def _encode_place(place: GrantedPlace | None) -> bytes | None:
    if place is None:
        return None
    addresses = b"".join(encode_field(2, address) for address in place.addresses)
    return encode_field(1, place.expires_at_s) + addresses


def _parse_place(data: bytes | None) -> GrantedPlace | None:
    if data is None:
        return None
    fields = ProtobufFields(data)
    return GrantedPlace(fields.number(1) or 0, tuple(fields.every(2)[:ADDRESSES_READ_MAX]))


def _encode_limit(limit: CircuitLimit | None) -> bytes | None:
    if limit is None:
        return None
    return encode_field(1, limit.duration_s or None) + encode_field(2, limit.data_bytes or None)


def _parse_limit(data: bytes | None) -> CircuitLimit | None:
    if data is None:
        return None
    fields = ProtobufFields(data)
    return CircuitLimit(fields.number(1) or 0, fields.number(2) or 0)
