"""The models in a store, as anyone may read them: see `capanode.models.store` for its layout."""

from dataclasses import dataclass
from pathlib import Path

from protocol.errors import RemoteProtocolError
from protocol.ids import Digest, is_digest
from protocol.manifest import (
    MANIFEST_BYTES_MAX,
    ModelManifest,
    decode_manifest,
    manifest_digest,
)

MANIFEST_NAME = "manifest.json"


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model that is complete on disk."""

    digest: Digest
    path: Path
    manifest: ModelManifest


class ModelFolder:
    """Reads the store at `root` and never writes; a store that is not there has no models."""

    def __init__(self, root: Path) -> None:
        self.path = root / "models"

    def digests(self) -> list[Digest]:
        """Every model here, named or not."""
        try:
            return sorted(Digest(path.name) for path in self.path.iterdir() if is_digest(path.name))
        except FileNotFoundError:
            return []

    def read(self, digest: Digest) -> StoredModel | None:
        """None unless the model is here with every file at its size; reads no weights."""
        folder = self.path / digest
        try:
            with (folder / MANIFEST_NAME).open("rb") as file:
                manifest = decode_manifest(file.read(MANIFEST_BYTES_MAX + 1))
            is_sound = manifest_digest(manifest) == digest and all(
                (folder / file.path).stat().st_size == file.bytes for file in manifest.files
            )
        except (OSError, RemoteProtocolError):
            return None
        return StoredModel(digest, folder, manifest) if is_sound else None
