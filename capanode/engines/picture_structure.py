"""What of an image file its pixels need, and what they will cost, from its structure alone.

Image libraries read a file's segments one by one, in Python, and a JPEG's pixels once for each of
its scans. Both are numbers that a stranger chooses, and both are bounded before a library sees the
file. Nor does it see metadata: cameras and editors write it slightly wrong, profiles and texts
unpack to any size, and none of it changes a class. Nothing is decoded here.
"""

import struct
from dataclasses import dataclass

from capanode.engines.base import EngineRefusal
from protocol.errors import Code

# An 8 MiB PNG in chunks of 8 KiB, as encoders write them, has a thousand. A photograph's profile
# and thumbnail take a few dozen segments of a JPEG.
SEGMENTS_MAX = 4_096

# Bytes that may fill the gap before a marker; encoders write none.
_FILL_BYTES_MAX = 16

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_JPEG_START = b"\xff\xd8"
_START_OF_SCAN = 0xDA
# Markers that stand alone, without a length: TEM, the restarts, and a second start of image.
_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})


_WEBP_HEAD = 30

# What decides pixels, and a PNG's Exif, which may say how to turn them.
_PNG_KINDS = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"})
# Segments of applications and comments; of them the first two and Adobe's are of use.
_JPEG_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})
_JPEG_KEPT = {0xE0: b"JFIF\x00", 0xE1: b"Exif\x00\x00", 0xEE: b"Adobe"}


@dataclass(frozen=True, slots=True)
class PictureFile:
    """What is left of a file. Its pixels are gone through `scans` times. `size` is that of a WebP,
    whose library makes room for its pixels before it says how many they are."""

    data: bytes
    scans: int = 1
    size: tuple[int, int] | None = None


def read_structure(data: bytes) -> PictureFile:
    """Raises EngineRefusal: INVALID_IMAGE for what is no JPEG, PNG or WebP or has a broken
    structure, IMAGE_TOO_LARGE for one with too many segments."""
    if data.startswith(_PNG_SIGNATURE):
        return PictureFile(_png_without_metadata(data))
    if data.startswith(_JPEG_START):
        kept = _jpeg_without_metadata(data)
        # Compressed data never holds these two bytes, so that this counts all scans, and at most a
        # thumbnail's as well.
        return PictureFile(kept, scans=kept.count(bytes((0xFF, _START_OF_SCAN))))
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return PictureFile(data, size=_webp_size(data[:_WEBP_HEAD]))
    raise _damaged()


def _png_without_metadata(data: bytes) -> bytes:
    """Without an animation's other frames too: the first picture is the file's."""
    kept = [_PNG_SIGNATURE]
    at = len(_PNG_SIGNATURE)
    for _ in range(SEGMENTS_MAX):
        kind = data[at + 4 : at + 8]
        if len(kind) < 4:
            raise _damaged()
        # Length, kind and checksum take 12 bytes.
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if kind in _PNG_KINDS:
            kept.append(data[at:end])
        if kind == b"IEND":
            return b"".join(kept)
        at = end
    raise _too_many_segments()


def _jpeg_without_metadata(data: bytes) -> bytes:
    """Walks the segments before the first scan. Stricter than the library, which skips over junk
    byte by byte."""
    kept = [_JPEG_START]
    at = len(_JPEG_START)
    for _ in range(SEGMENTS_MAX):
        start = at
        while data[at : at + 1] == b"\xff":
            at += 1
            if at - start > _FILL_BYTES_MAX:
                raise _damaged()
        if at == start or at >= len(data):
            raise _damaged()
        marker = data[at]
        at += 1
        if marker == _START_OF_SCAN:
            return b"".join([*kept, data[start:]])
        if marker not in _BARE_MARKERS:
            length = int.from_bytes(data[at : at + 2], "big")
            if length < 2:
                raise _damaged()
            at += length
        if marker not in _JPEG_METADATA or _is_useful(marker, data[start:at], kept):
            kept.append(data[start:at])
    raise _too_many_segments()


def _is_useful(marker: int, segment: bytes, kept: list[bytes]) -> bool:
    name = _JPEG_KEPT.get(marker)
    return name is not None and name in segment[:12] and not any(name in s[:12] for s in kept)


def _webp_size(head: bytes) -> tuple[int, int]:
    """As its header says; the library checks that the pixels agree."""
    kind = head[12:16]
    if len(head) < _WEBP_HEAD:
        raise _damaged()
    if kind == b"VP8X":
        width, height = (int.from_bytes(head[at : at + 3], "little") + 1 for at in (24, 27))
        return width, height
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise _damaged()


def _damaged() -> EngineRefusal:
    return EngineRefusal("not a JPEG, PNG or WebP image, or damaged", code=Code.INVALID_IMAGE)


def _too_many_segments() -> EngineRefusal:
    return EngineRefusal(
        "the image has more than {limit} segments", code=Code.IMAGE_TOO_LARGE, limit=SEGMENTS_MAX
    )
