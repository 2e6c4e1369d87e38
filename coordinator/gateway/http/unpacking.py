"""Bodies that a client has compressed, unpacked piece by piece.

A kilobyte may unpack to a megabyte. Each piece is bounded, so that its reader can count it against
the bounds of plain bodies before the next one is made.
"""

import zlib
from collections.abc import Iterator

from coordinator.gateway.errors import ApiError, Problem, invalid

PIECE_BYTES = 64 * 1024

# JSON with much repetition unpacks to fifty times its size, and nothing useful to more than this.
RATIO_MAX = 200
# Below this size the ratio says nothing: a short body is mostly the frame around it.
_RATIO_FROM_BYTES = 256 * 1024

# A gzip file may be several, one after another. Each costs a new decompressor.
_MEMBERS_MAX = 16

# By the names of RFC 9110 §8.4.1. `wbits` is 31 for gzip, and 15 for zlib's frame.
_WBITS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
# Some clients leave out the frame that `deflate` should have.
_RAW_WBITS = -15


class Unpacker:
    """Of one body. Every method raises ApiError (400) for what is no such data."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._stream = zlib.decompressobj(_WBITS[encoding])
        self._members = 1
        self._packed = 0
        self._unpacked = 0

    def unpack(self, data: bytes) -> Iterator[bytes]:
        """What follows from the next packed bytes, in pieces of at most PIECE_BYTES."""
        is_first = data and not self._packed
        self._packed += len(data)
        if is_first and self._encoding == "deflate" and not _has_frame(data):
            self._stream = zlib.decompressobj(_RAW_WBITS)
        while data:
            if self._stream.eof:
                self._begin_member()
            try:
                piece = self._stream.decompress(data, PIECE_BYTES)
            except zlib.error:
                raise self._broken("it is damaged") from None
            data = self._stream.unconsumed_tail or self._stream.unused_data
            self._check_ratio(len(piece))
            if piece:
                yield piece

    def check_end(self) -> None:
        """The last byte has come."""
        if not self._stream.eof:
            raise self._broken("it ends too early")

    def _begin_member(self) -> None:
        self._members += 1
        if self._encoding == "deflate" or self._members > _MEMBERS_MAX:
            raise self._broken("more follows after its end")
        self._stream = zlib.decompressobj(_WBITS[self._encoding])

    def _check_ratio(self, size: int) -> None:
        self._unpacked += size
        if self._unpacked > max(_RATIO_FROM_BYTES, RATIO_MAX * self._packed):
            raise self._broken(f"it unpacks to more than {RATIO_MAX} times its size")

    def _broken(self, why: str) -> ApiError:
        return invalid(
            f"the body cannot be unpacked as {self._encoding}: {why}", None, code="invalid_encoding"
        )


def unpacker_of(encoding: str | None) -> Unpacker | None:
    """For a content encoding; None if the body is plain. Raises ApiError (415)."""
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return None
    if name in _WBITS:
        return Unpacker(name)
    known = ", ".join(_WBITS)
    raise ApiError(
        Problem(
            415,
            f"the content encoding {name[:32]!r} is not supported: send the body plain, or as one "
            f"of {known}",
            code="unsupported_content_encoding",
            headers=((b"accept-encoding", b"gzip, deflate"), (b"connection", b"close")),
        )
    )


def _has_frame(data: bytes) -> bool:
    """Whether it begins as RFC 1950 says, as far as the first bytes tell."""
    return data[0] & 0x0F == 8 and (len(data) < 2 or int.from_bytes(data[:2]) % 31 == 0)
