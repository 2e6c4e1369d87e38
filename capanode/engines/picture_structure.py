"""What an image file will cost to read, from its structure alone: nothing is decoded here.

Image libraries read a file's segments one by one, in Python, and a JPEG's pixels once for each of
its scans. Both are numbers that a stranger chooses, and both are bounded before a library sees the
file.
"""

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


def count_scans(data: bytes) -> int:
    """How often the pixels are gone through: once, or a JPEG's number of scans.

    Raises EngineRefusal: INVALID_IMAGE for what is neither JPEG nor PNG or has a broken structure,
    IMAGE_TOO_LARGE for one with too many segments.
    """
    if data.startswith(_PNG_SIGNATURE):
        _check_png(data)
        return 1
    if data.startswith(_JPEG_START):
        _check_jpeg(data)
        # Compressed data never holds these two bytes, so that this counts all scans, and at most a
        # thumbnail's as well.
        return data.count(bytes((0xFF, _START_OF_SCAN)))
    raise _damaged()


def _check_png(data: bytes) -> None:
    at = len(_PNG_SIGNATURE)
    for _ in range(SEGMENTS_MAX):
        kind = data[at + 4 : at + 8]
        if len(kind) < 4:
            raise _damaged()
        if kind == b"IEND":
            return
        # Length, kind and checksum take 12 bytes.
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise _too_many_segments()


def _check_jpeg(data: bytes) -> None:
    """Walk the segments before the first scan. Stricter than the library, which skips over junk
    byte by byte."""
    at = len(_JPEG_START)
    for _ in range(SEGMENTS_MAX):
        if data[at : at + 1] != b"\xff":
            raise _damaged()
        start = at
        while data[at : at + 1] == b"\xff":
            at += 1
            if at - start > _FILL_BYTES_MAX:
                raise _damaged()
        if at >= len(data):
            raise _damaged()
        marker = data[at]
        at += 1
        if marker == _START_OF_SCAN:
            return
        if marker not in _BARE_MARKERS:
            length = int.from_bytes(data[at : at + 2], "big")
            if length < 2:
                raise _damaged()
            at += length
    raise _too_many_segments()


def _damaged() -> EngineRefusal:
    return EngineRefusal("not a JPEG or PNG image, or damaged", code=Code.INVALID_IMAGE)


def _too_many_segments() -> EngineRefusal:
    return EngineRefusal(
        "the image has more than {limit} segments", code=Code.IMAGE_TOO_LARGE, limit=SEGMENTS_MAX
    )
