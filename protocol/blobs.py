"""Files of models between peers, by digest: bodies of REQUEST and REPLY frames on `BLOB_PROTOCOL`.

Nothing here is signed: what arrives either has the digest that was asked for, or is dropped. So
that a lie is found after a piece and not after the file, the digests of a file's pieces, its
outline, are asked for first; an outline may be a lie, too, and is compared with that of others.
"""

from dataclasses import dataclass
from enum import StrEnum

from protocol.ids import Digest, is_digest
from protocol.limits import KIB, MIB

# One read. A reply fits a frame, and a node's other streams wait for it some milliseconds.
BLOB_READ_BYTES_MAX = 128 * KIB

# An outline of a file of 16 GiB is 128 KiB; larger files have larger pieces.
PIECE_BYTES_MIN = 4 * MIB
PIECES_MAX = 4_096
DIGEST_BYTES = 32

# Of a file: more than any one file in the field has.
BLOB_BYTES_MAX = 1 << 40


class BlobMethod(StrEnum):
    """REQUEST methods of `BLOB_PROTOCOL`; the bodies that each takes and answers are beside it."""

    MANIFEST = "manifest"  # ManifestAsk → ManifestReply
    OUTLINE = "outline"  # OutlineAsk → OutlineReply
    READ = "read"  # BlobRead → BlobReply


@dataclass(frozen=True, slots=True)
class ManifestAsk:
    """Of a model that the other side shares."""

    manifest_digest: Digest

    def __post_init__(self) -> None:
        if not is_digest(self.manifest_digest):
            raise ValueError("not a digest")


@dataclass(frozen=True, slots=True)
class ManifestReply:
    """Its canonical bytes, whose digest was asked for."""

    manifest: bytes


@dataclass(frozen=True, slots=True)
class OutlineAsk:
    """Of a file of a model that the other side shares."""

    sha256: Digest

    def __post_init__(self) -> None:
        if not is_digest(self.sha256):
            raise ValueError("not a digest")


@dataclass(frozen=True, slots=True)
class OutlineReply:
    """The sha256 of each piece, one after the other."""

    digests: bytes


@dataclass(frozen=True, slots=True)
class BlobRead:
    """Some bytes of a file."""

    sha256: Digest
    offset: int
    length: int

    def __post_init__(self) -> None:
        if not is_digest(self.sha256):
            raise ValueError("not a digest")
        if not 0 <= self.offset < BLOB_BYTES_MAX or not 0 < self.length <= BLOB_READ_BYTES_MAX:
            raise ValueError("the range is out of bounds")


@dataclass(frozen=True, slots=True)
class BlobReply:
    """As many bytes as were asked for, or fewer at the end of the file."""

    data: bytes


def piece_bytes_of(size: int) -> int:
    """How long the pieces of a file of `size` bytes are: the same for all who have it."""
    piece_bytes = PIECE_BYTES_MIN
    while piece_bytes * PIECES_MAX < size:
        piece_bytes *= 2
    return piece_bytes
