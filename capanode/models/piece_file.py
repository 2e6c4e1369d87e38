"""A file that arrives in pieces, several at once: what has arrived outlives the process, and the
digest is computed while it arrives.

Beside the file lies a journal: how much of each piece is there. It is written after the bytes that
it counts and may be older than they are, so that a killed process loses some megabytes and never
takes a hole for data. A power cut can make it wrong all the same; then the digest does not match,
and the file is fetched anew.
"""

import hashlib
import json
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

# Long enough that a request's round trip is small beside it, short enough that eight connections
# share a file of a gigabyte evenly.
PIECE_BYTES = 32 * 1024 * 1024

_JOURNAL_EVERY_BYTES = 32 * 1024 * 1024
_JOURNAL_BYTES_MAX = 4 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024
_PRIVATE_FILE = 0o600


class Hash(Protocol):
    """What `hashlib` makes."""

    def update(self, data: bytes, /) -> None: ...

    def hexdigest(self) -> str: ...


NewHash = Callable[[], Hash]


@dataclass(frozen=True, slots=True)
class FilePiece:
    """Bytes `start` to `end` of a file; the last piece may be shorter than the others."""

    number: int
    start: int
    end: int


class PieceFile:
    """One file of `size` bytes at `path`. Safe to write from several threads, each its own piece.

    Opens what an earlier process left there; a journal that does not fit is ignored. `new_hash`
    makes what digests the file.
    """

    def __init__(
        self,
        path: Path,
        size: int,
        *,
        new_hash: NewHash = hashlib.sha256,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self.path = path
        self.size = size
        count = max(1, -(-size // piece_bytes))
        self.pieces = tuple(
            FilePiece(number, number * piece_bytes, min(size, (number + 1) * piece_bytes))
            for number in range(count)
        )
        self._piece_bytes = piece_bytes
        self._journal = path.with_name(f"{path.name}.journal")
        self._lock = threading.Lock()
        self._unsaved = 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _PRIVATE_FILE)
        self._have = self._load_journal()
        # What lies beyond its end never becomes part of it.
        os.truncate(path, min(size, path.stat().st_size))
        self._hashed = 0
        self._new_hash = new_hash
        self._hash = new_hash()

    def close(self) -> None:
        """Keep what is there for the next time."""
        with self._lock:
            if self._descriptor >= 0:
                self._save_journal()
                os.close(self._descriptor)
                self._descriptor = -1

    def discard(self) -> None:
        """Forget everything that has arrived."""
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1
            self.path.unlink(missing_ok=True)
            self._journal.unlink(missing_ok=True)

    def move(self, target: Path) -> None:
        """Put the file where it belongs, whole."""
        self.close()
        target.parent.mkdir(parents=True, exist_ok=True)
        self.path.replace(target)
        self._journal.unlink(missing_ok=True)

    @property
    def have_bytes(self) -> int:
        return sum(self._have)

    @property
    def is_whole(self) -> bool:
        return self.have_bytes == self.size

    def have(self, piece: FilePiece) -> int:
        """How many bytes of a piece are there, from its start."""
        return self._have[piece.number]

    def room(self, piece: FilePiece) -> int:
        """How many bytes of a piece are missing."""
        return piece.end - piece.start - self._have[piece.number]

    def missing(self) -> list[FilePiece]:
        return [piece for piece in self.pieces if self.room(piece)]

    def write(self, piece: FilePiece, data: bytes) -> None:
        """The next bytes of a piece, which must fit into it."""
        with self._lock:
            offset = piece.start + self.have(piece)
            assert offset + len(data) <= piece.end, "a piece was cut before it was written"
            self._write_at(data, offset)
            self._have[piece.number] += len(data)
            self._unsaved += len(data)
            if self._unsaved >= _JOURNAL_EVERY_BYTES:
                self._save_journal()
            self._hash_on()

    def forget(self) -> None:
        """Begin anew."""
        with self._lock:
            self._have = [0] * len(self.pieces)
            self._hashed = 0
            self._hash = self._new_hash()

    def forget_piece(self, piece: FilePiece) -> None:
        """Begin one piece anew."""
        with self._lock:
            self._have[piece.number] = 0
            if self._hashed > piece.start:
                self._hashed = 0
                self._hash = self._new_hash()

    def read_piece(self, piece: FilePiece) -> bytes:
        return os.pread(self._descriptor, piece.end - piece.start, piece.start)

    def hexdigest(self) -> str:
        """Of the whole file."""
        assert self.is_whole, "a digest is asked of a whole file"
        with self._lock:
            self._hash_on()
            return self._hash.hexdigest()

    def _write_at(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._descriptor, view, offset)
            view, offset = view[written:], offset + written

    def _hash_on(self) -> None:
        """Hash what is there without a gap and was not hashed yet. It is read back: the system has
        it in memory still, unless pieces came far out of order."""
        while (ready := self._contiguous_end()) > self._hashed:
            size = min(_CHUNK_BYTES, ready - self._hashed)
            chunk = os.pread(self._descriptor, size, self._hashed)
            if not chunk:
                raise OSError(f"{self.path} became shorter while it was written")
            self._hash.update(chunk)
            self._hashed += len(chunk)

    def _contiguous_end(self) -> int:
        """Where the first gap begins that is not hashed yet."""
        number = min(self._hashed // self._piece_bytes, len(self.pieces) - 1)
        return self.pieces[number].start + self._have[number]

    def _load_journal(self) -> list[int]:
        try:
            with self._journal.open("rb") as file:
                plain = json.loads(file.read(_JOURNAL_BYTES_MAX))
            have = list(plain["have"])
            fits = plain["piece_bytes"] == self._piece_bytes and len(have) == len(self.pieces)
            there = os.fstat(self._descriptor).st_size
            for piece, count in zip(self.pieces, have, strict=True) if fits else ():
                end = piece.start + count
                if (
                    type(count) is not int
                    or count < 0
                    or end > piece.end
                    or (count and end > there)
                ):
                    fits = False
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            fits = False
        return have if fits else [0] * len(self.pieces)

    def _save_journal(self) -> None:
        """In one step, and without waiting for the disk: after a power cut it may be gone or wrong,
        which costs a part of the download."""
        plain = {"piece_bytes": self._piece_bytes, "have": self._have}
        temporary = self._journal.with_name(f"{self._journal.name}.new")
        temporary.write_text(json.dumps(plain))
        temporary.replace(self._journal)
        self._unsaved = 0
