"""The models that a node can get by name: where from, how to convert, and what must come out.

`catalog.json` pins everything: the bytes of each wheel, and the digest of each converted file. An
entry therefore names one exact model, the same for every converter. Names of models of a hub, which
pin nothing, are in `capanode.models.hub_catalog`.
"""

import difflib
import json
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from capanode.models.errors import SourceError, UnknownModelError
from capanode.models.hub_catalog import HubEntry, load_hub_entries
from capanode.models.sources_pypi import Member, Wheel
from protocol.ids import Digest, is_digest
from protocol.manifest import ModelFile, ModelManifest, manifest_digest
from protocol.messages import Task


@dataclass(frozen=True, slots=True)
class CatalogEntry:
    """One model: `manifest` is what must come out of converting what is in `wheels`."""

    manifest: ModelManifest
    format: str
    wheels: tuple[Wheel, ...]

    @property
    def digest(self) -> Digest:
        return manifest_digest(self.manifest)

    @property
    def bytes(self) -> int:
        """What the finished model takes on disk."""
        return sum(file.bytes for file in self.manifest.files)

    @property
    def work_bytes(self) -> int:
        """What getting it takes on disk at its peak: wheels, what is in them, and the result."""
        members = sum(member.bytes for wheel in self.wheels for member in wheel.members)
        return self.bytes + members + max(wheel.bytes for wheel in self.wheels)


@dataclass(frozen=True, slots=True)
class Catalog:
    entries: tuple[CatalogEntry, ...]
    hub: tuple[HubEntry, ...] = ()

    @property
    def names(self) -> list[str]:
        pinned = [entry.manifest.name for entry in self.entries]
        return [*pinned, *(entry.name for entry in self.hub)]

    def find_hub(self, name: str) -> HubEntry | None:
        """The model of a hub that is called so here."""
        return next((entry for entry in self.hub if entry.name == name), None)

    def find(self, name: str) -> CatalogEntry:
        """Raises UnknownModelError that says what is called alike."""
        for entry in self.entries:
            if entry.manifest.name == name:
                return entry
        alike = difflib.get_close_matches(name, self.names, n=3) or self.names[:2]
        raise UnknownModelError(
            f"no model {name[:100]!r} in the catalog: do you mean {', '.join(alike)}? `capanode "
            "models list` shows all; or give a source, hf:OWNER/REPO@REVISION, peer:DIGEST or "
            "file:PATH"
        )


def load_catalog(path: Path | None = None) -> Catalog:
    """Read the catalog that ships with this version, or another one. Raises SourceError."""
    hub = load_hub_entries() if path is None else ()
    where = path if path is not None else resources.files("capanode.models") / "catalog.json"
    try:
        plain = json.loads(where.read_text(encoding="utf-8"))
        return Catalog(tuple(_parse_entry(entry) for entry in plain["models"]), hub)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"the catalog {where} cannot be read: {error!r}") from error


def _parse_entry(plain: dict[str, Any]) -> CatalogEntry:
    manifest = dict(plain["manifest"])
    files = tuple(ModelFile(**file) for file in manifest.pop("files"))
    task = Task(manifest.pop("task"))
    return CatalogEntry(
        manifest=ModelManifest(**manifest, task=task, files=files),
        format=plain["format"],
        wheels=tuple(_parse_wheel(wheel) for wheel in plain["wheels"]),
    )


def _parse_wheel(plain: dict[str, Any]) -> Wheel:
    if not is_digest(plain["sha256"]):
        raise ValueError(f"{plain['requirement']} has no valid digest")
    members = tuple(Member(**member) for member in plain["members"])
    return Wheel(plain["requirement"], Digest(plain["sha256"]), plain["bytes"], members)
