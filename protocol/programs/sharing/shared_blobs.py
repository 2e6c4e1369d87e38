"""Which files of the store may go to other nodes, and their outlines.

Only of models that came from a public source under a licence that lets everyone pass them on: a
model of the operator's own, of a private or gated repository, or of unknown licence stays here.
"""

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

from protocol.blobs import piece_bytes_of
from protocol.errors import CapaError
from protocol.ids import Digest
from protocol.manifest import encode_manifest
from protocol.programs.sharing.model_folder import ModelFolder, StoredModel

# As repositories write them, in lower case.
FREE_LICENCES = frozenset(
    {
        "apache-2.0",
        "mit",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "isc",
        "cc0-1.0",
        "cc-by-4.0",
        "unlicense",
    }
)
_PUBLIC_SOURCES = ("hf:", "pypi:")
_CHUNK_BYTES = 1024 * 1024
_OUTLINES_KEPT = 256


class DamagedBlobError(CapaError):
    """A file of a store is not what its digest says."""


def may_be_shared(model: StoredModel) -> bool:
    manifest = model.manifest
    is_free = manifest.licence.lower() in FREE_LICENCES
    return is_free and manifest.source.startswith(_PUBLIC_SOURCES)


class SharedBlobs:
    """Blocking reads of the store for peers; one thread at a time makes outlines."""

    def __init__(self, models: ModelFolder) -> None:
        self._models = models
        self._paths: dict[Digest, Path] = {}
        self._outlines: dict[Digest, bytes] = {}
        self._under_way: dict[Digest, _Outlining] = {}

    def manifest(self, digest: Digest) -> bytes | None:
        """None if we do not have it, or do not share it."""
        model = self._find(digest)
        return encode_manifest(model.manifest) if model is not None else None

    def path(self, digest: Digest) -> Path | None:
        """Where a file lies that we share."""
        known = self._paths.get(digest)
        if known is not None and known.exists():
            return known
        for model_digest in self._models.digests():
            model = self._find(model_digest)
            for file in model.manifest.files if model is not None else ():
                if file.sha256 == digest:
                    assert model is not None, "its file was found"
                    self._paths[digest] = model.path / file.path
                    return self._paths[digest]
        return None

    def read(self, path: Path, offset: int, length: int) -> bytes:
        with path.open("rb", buffering=0) as file:
            return os.pread(file.fileno(), length, offset)

    def outline(
        self, digest: Digest, path: Path, *, is_time_up: Callable[[], bool]
    ) -> bytes | None:
        """The digests of a file's pieces; None if the time was up first: the next call goes on.

        Raises DamagedBlobError if the file is not what its digest says.
        """
        if (known := self._outlines.get(digest)) is not None:
            return known
        work = self._under_way.setdefault(digest, _Outlining(path))
        if not work.go_on(is_time_up):
            return None
        del self._under_way[digest]
        if work.whole.hexdigest() != digest:
            raise DamagedBlobError(f"{path} changed on disk")
        if len(self._outlines) >= _OUTLINES_KEPT:
            self._outlines.pop(next(iter(self._outlines)))
        self._outlines[digest] = bytes(work.digests)
        return self._outlines[digest]

    def _find(self, digest: Digest) -> StoredModel | None:
        model = self._models.read(digest)
        return model if model is not None and may_be_shared(model) else None


class _Outlining:
    """An outline that is being made."""

    def __init__(self, path: Path) -> None:
        self.whole = hashlib.sha256()
        self.digests = bytearray()
        self._path = path
        self._size = path.stat().st_size
        self._offset = 0
        self._piece = hashlib.sha256()

    def go_on(self, is_time_up: Callable[[], bool]) -> bool:
        piece_bytes = piece_bytes_of(self._size)
        with self._path.open("rb", buffering=0) as file:
            while self._offset < self._size:
                if is_time_up():
                    return False
                left = piece_bytes - self._offset % piece_bytes
                chunk = os.pread(file.fileno(), min(_CHUNK_BYTES, left), self._offset)
                if not chunk:
                    raise DamagedBlobError(f"{self._path} became shorter")
                self.whole.update(chunk)
                self._piece.update(chunk)
                self._offset += len(chunk)
                if self._offset % piece_bytes == 0 or self._offset == self._size:
                    self.digests += self._piece.digest()
                    self._piece = hashlib.sha256()
        return True
