"""Bytes at rest: files that are sealed as they arrive, and read from any place.

Each file has a key of its own, derived by HKDF (RFC 5869) from the coordinator's seed and the
file's id, so that a copy of the folder reads nothing. It is a row of chunks, each sealed by AES-GCM
with a fresh nonce and its number, so that chunks cannot be swapped. How many there are says the
file's row in the database.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from coordinator.batches.errors import DamagedFileError, FilesFullError
from protocol.clock import Entropy
from protocol.keys import SigningKey

CHUNK_BYTES = 64 * 1024
NONCE_BYTES = 12
TAG_BYTES = 16
_SEALED_BYTES = NONCE_BYTES + CHUNK_BYTES + TAG_BYTES
_PURPOSE = b"capacloud files 1 "


class Sealer:
    """Seals the numbered pieces of one file."""

    def __init__(self, key: SigningKey, file_id: str, entropy: Entropy) -> None:
        info = _PURPOSE + file_id.encode()
        self._cipher = AESGCM(HKDF(SHA256(), length=32, salt=None, info=info).derive(key.seed()))
        self._entropy = entropy

    def seal(self, number: int, piece: bytes) -> bytes:
        nonce = self._entropy(NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, piece, number.to_bytes(8))

    def open(self, number: int, sealed: bytes) -> bytes:
        """Raises DamagedFileError."""
        nonce, rest = sealed[:NONCE_BYTES], sealed[NONCE_BYTES:]
        try:
            return self._cipher.decrypt(nonce, rest, number.to_bytes(8))
        except (InvalidTag, ValueError):
            raise DamagedFileError(
                "a stored file is damaged, or another coordinator key sealed it"
            ) from None


class SealedFolder:
    """A folder of sealed files by their ids. Everything here blocks: call it in a thread."""

    def __init__(self, folder: Path, key: SigningKey, entropy: Entropy) -> None:
        self.folder = folder
        self._key = key
        self._entropy = entropy

    def prepare(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def sealer(self, file_id: str) -> Sealer:
        return Sealer(self._key, file_id, self._entropy)

    def path(self, file_id: str) -> Path:
        return self.folder / file_id

    def create(self, file_id: str) -> "BlobWriter":
        """Raises FilesFullError."""
        return BlobWriter(open_private(self.path(file_id)), self.sealer(file_id))

    def open(self, file_id: str, size: int) -> "BlobReader":
        """Raises DamagedFileError if it is not there."""
        try:
            descriptor = os.open(self.path(file_id), os.O_RDONLY)
        except OSError:
            raise DamagedFileError("a stored file is missing from its folder") from None
        return BlobReader(descriptor, self.sealer(file_id), size)

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.folder).free

    def delete(self, file_id: str) -> None:
        with suppress(FileNotFoundError):
            self.path(file_id).unlink()

    def delete_all_but(self, file_ids: set[str]) -> None:
        """What an earlier process began and did not finish."""
        for path in self.folder.iterdir():
            if path.is_file() and path.name not in file_ids:
                path.unlink()

    def make_names_durable(self) -> None:
        descriptor = os.open(self.folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


class BlobWriter:
    """Takes bytes; `finish` makes them durable. Close it always."""

    def __init__(self, descriptor: int, sealer: Sealer) -> None:
        self._descriptor = descriptor
        self._sealer = sealer
        self._pending = bytearray()
        self._chunks = 0
        self.size = 0

    def write(self, data: bytes) -> None:
        """Raises FilesFullError."""
        self.size += len(data)
        self._pending += data
        while len(self._pending) >= CHUNK_BYTES:
            self._write_chunk(bytes(self._pending[:CHUNK_BYTES]))
            del self._pending[:CHUNK_BYTES]

    def finish(self) -> None:
        """Raises FilesFullError."""
        if self._pending:
            self._write_chunk(bytes(self._pending))
            self._pending.clear()
        os.fsync(self._descriptor)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _write_chunk(self, chunk: bytes) -> None:
        write_all(self._descriptor, self._sealer.seal(self._chunks, chunk))
        self._chunks += 1


class BlobReader:
    """Reads any part of a file. It reads on although the file is deleted meanwhile."""

    def __init__(self, descriptor: int, sealer: Sealer, size: int) -> None:
        self._descriptor = descriptor
        self._sealer = sealer
        self.size = size

    def read(self, start: int, length: int) -> bytes:
        """At most to the end of the chunk that has `start`. Raises DamagedFileError."""
        end = min(start + length, self.size)
        if start >= end:
            return b""
        number = start // CHUNK_BYTES
        sealed = os.pread(self._descriptor, _SEALED_BYTES, number * _SEALED_BYTES)
        chunk = self._sealer.open(number, sealed)
        if len(chunk) != min(CHUNK_BYTES, self.size - number * CHUNK_BYTES):
            raise DamagedFileError("a stored file is shorter than it was")
        offset = start - number * CHUNK_BYTES
        return chunk[offset : offset + end - start]

    def pieces(self, start: int = 0) -> Iterator[bytes]:
        while piece := self.read(start, CHUNK_BYTES):
            yield piece
            start += len(piece)

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def open_private(path: Path) -> int:
    """A new file that is its owner's alone. Raises FilesFullError."""
    try:
        return os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    except OSError as error:
        raise FilesFullError(f"no file can be made: {error.strerror}") from error


def write_all(descriptor: int, data: bytes) -> None:
    """Raises FilesFullError."""
    view = memoryview(data)
    try:
        while view:
            view = view[os.write(descriptor, view) :]
    except OSError as error:
        raise FilesFullError(f"the disk of the files takes no more: {error.strerror}") from error
