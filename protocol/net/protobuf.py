"""The part of protobuf that libp2p's small messages need: varints and bytes, by field number.

A field that we do not know is kept apart from those that we read, so later versions may add some.
Source: https://protobuf.dev/programming-guides/encoding/
"""

from collections.abc import Iterator

from protocol.errors import Code, RemoteProtocolError

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# 64 bits in groups of seven.
VARINT_BYTES_MAX = 10

Value = int | bytes


def encode_varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def encode_field(number: int, value: Value | None) -> bytes:
    """Nothing for None."""
    if value is None:
        return b""
    if isinstance(value, int):
        return encode_varint(number << 3 | _VARINT) + encode_varint(value)
    return encode_varint(number << 3 | _BYTES) + encode_varint(len(value)) + value


class ProtobufFields:
    """The fields of one message. Raises RemoteProtocolError (MALFORMED) for bytes that are none."""

    def __init__(self, data: bytes) -> None:
        self._values: dict[int, list[Value]] = {}
        for number, value in _fields(data):
            self._values.setdefault(number, []).append(value)

    def number(self, field: int) -> int | None:
        """The last one counts, as protobuf has it. None if there is none."""
        value = self._last(field)
        if value is not None and not isinstance(value, int):
            raise _malformed(f"field {field} is not a number")
        return value

    def data(self, field: int) -> bytes | None:
        value = self._last(field)
        if value is not None and not isinstance(value, bytes):
            raise _malformed(f"field {field} is not bytes")
        return value

    def every(self, field: int) -> list[bytes]:
        """All values of a repeated field of bytes."""
        return [value for value in self._values.get(field, ()) if isinstance(value, bytes)]

    def _last(self, field: int) -> Value | None:
        values = self._values.get(field)
        return values[-1] if values else None


def _fields(data: bytes) -> Iterator[tuple[int, Value]]:
    position = 0
    while position < len(data):
        tag, position = _read_varint(data, position)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, position = _read_varint(data, position)
            yield number, value
            continue
        if kind == _BYTES:
            size, position = _read_varint(data, position)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise _malformed(f"field {number} is of kind {kind}")
        if size > len(data) - position:
            raise _malformed(f"field {number} is cut off")
        if kind == _BYTES:
            yield number, data[position : position + size]
        position += size


def _read_varint(data: bytes, position: int) -> tuple[int, int]:
    value = 0
    for index in range(VARINT_BYTES_MAX):
        if position + index >= len(data):
            break
        byte = data[position + index]
        value |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return value, position + index + 1
    raise _malformed("a number does not end")


def _malformed(reason: str) -> RemoteProtocolError:
    return RemoteProtocolError(reason, code=Code.MALFORMED)
