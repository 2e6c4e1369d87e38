"""The node's models on disk, addressed by content.

    blobs/sha256/<aa>/<digest>     every file once, however many models share it; read-only
    models/<manifest digest>/      one model as its engine wants it: hard links, and manifest.json
    names.json                     what people call them: name → manifest digest
    scratch/                       work in progress, deleted when its process ends
    partial/                       downloads that stopped half way, for the next try
    locks/                         one lock for changes to the store, one per name for pulls
    use/                           a mark per model: locked while a node serves it
    checked/                       a mark per model: it was hashed whole as it is

A model's folder appears in one rename after its bytes were checked and synced, so a folder that
exists is complete. All is readable by any uid: a worker runs as another user than the node.
"""

import contextlib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from capanode.models.blobs import BlobFolder
from capanode.models.check_marks import CheckMarks
from capanode.models.errors import (
    CorruptModelError,
    DigestMismatchError,
    ModelInUseError,
    StorageDeniedError,
    StoreBusyError,
    UnknownModelError,
)
from capanode.models.files import (
    disk_errors_named,
    file_lock,
    make_readable_folder,
    remove_abandoned,
    remove_tree,
    scratch_folder,
    sha256_file,
    sync_folder,
    write_durably,
)
from capanode.models.foreign_tree import sha256_of, size_of
from capanode.models.progress import ProgressCallback, ignore_progress
from capanode.models.use_marks import UseMarks
from protocol.ids import Digest, is_digest, sha256_digest
from protocol.limits import NAME_CHARS_MAX
from protocol.manifest import ModelFile, ModelManifest, encode_manifest, manifest_digest
from protocol.programs.sharing.model_folder import MANIFEST_NAME, ModelFolder, StoredModel

# Changes to the store are renames and links; a process that holds its lock for longer is stuck.
_STORE_LOCK_TIMEOUT_S = 60.0
# A second pull of the same name waits for the first one's download.
_PULL_LOCK_TIMEOUT_S = 3_600.0
_NAMES_BYTES_MAX = 1024 * 1024
_NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@:+-]*")


def check_name(name: str) -> None:
    """Raises UnknownModelError unless `name` can name a model."""
    if not _NAME_PATTERN.fullmatch(name) or len(name) > NAME_CHARS_MAX or is_digest(name):
        raise UnknownModelError(
            f"{name[:NAME_CHARS_MAX]!r} cannot name a model: give another name, of letters, "
            "digits and . _ / -"
        )


class ModelStore:
    """Opens (and makes) the store at `root`; safe to use from several processes at once."""

    def __init__(self, root: Path) -> None:
        self.root = root.absolute()
        self._reader = ModelFolder(self.root)
        self._models = self._reader.path
        self._scratch = self.root / "scratch"
        self._partial = self.root / "partial"
        self._locks = self.root / "locks"
        self._names = self.root / "names.json"
        try:
            with disk_errors_named(self.root):
                self.use = UseMarks(self.root / "use", below=self.root)
                self._checked = CheckMarks(self.root / "checked", below=self.root)
                self._blobs = BlobFolder(self.root / "blobs" / "sha256", below=self.root)
                for folder in (self._models, self._scratch, self._partial, self._locks):
                    make_readable_folder(folder, below=self.root)
        except (FileExistsError, FileNotFoundError, NotADirectoryError) as error:
            raise StorageDeniedError(
                f"models cannot lie in {self.root} ({error.filename}: {error.strerror}): choose "
                "another folder with --model-store (`model_store`)"
            ) from error

    # Reading

    def names(self) -> dict[str, Digest]:
        """What people call the models here; a name may outlive its damaged model."""
        try:
            data = self._names.read_bytes()[: _NAMES_BYTES_MAX + 1]
        except FileNotFoundError:
            return {}
        try:
            names = json.loads(data)
            if all(is_digest(digest) for digest in names.values()):
                return {str(name): Digest(digest) for name, digest in names.items()}
        except (ValueError, TypeError, AttributeError):
            pass
        raise CorruptModelError(f"{self._names} is damaged: delete it and pull the models again")

    def digests(self) -> list[Digest]:
        """Every model here, named or not."""
        return self._reader.digests()

    def find(self, name_or_digest: str) -> StoredModel:
        """Raises UnknownModelError if it is not here, CorruptModelError if a file is missing."""
        digest = self.names().get(name_or_digest)
        if digest is None and is_digest(name_or_digest):
            digest = Digest(name_or_digest)
        if digest is None or not (self._models / digest).exists():
            raise UnknownModelError(
                f"no model {name_or_digest!r} in {self.root}: see `capanode models list`, or get "
                f"it with `capanode models pull {name_or_digest}`"
            )
        return self._read(digest)

    def is_blob_here(self, digest: Digest) -> bool:
        """True if a model has brought a file of this content; it is not read."""
        return self._blobs.path(digest).exists()

    def is_complete(self, digest: Digest) -> bool:
        """True if the model is here with every file at its size; reads no weights."""
        try:
            self._read(digest)
        except CorruptModelError:
            return False
        return True

    def verify(self, digest: Digest, *, progress: ProgressCallback = ignore_progress) -> None:
        """Hash every file of a model. Raises CorruptModelError that names the damaged ones."""
        model = self._read(digest)
        damaged = [
            file.path
            for file in model.manifest.files
            if sha256_file(model.path / file.path, step=f"verify {file.path}", progress=progress)
            != file.sha256
        ]
        if damaged:
            raise CorruptModelError(
                f"{', '.join(damaged)} of {model.manifest.name} changed on disk: "
                f"`capanode models pull {model.manifest.name}` repairs it"
            )

    def is_checked(self, digest: Digest) -> bool:
        """True if `check` has nothing to read."""
        return self._checked.is_fresh(self._read(digest))

    def check(self, digest: Digest) -> None:
        """Hash every file of a model, unless that was done since they changed.

        Raises CorruptModelError.
        """
        if not self.is_checked(digest):
            self.verify(digest)
            self._checked.keep(self._read(digest))

    # Changing

    @contextlib.contextmanager
    def pull_lock(self, name: str) -> Iterator[None]:
        """Held around a pull, so that two processes do not download the same model twice."""
        lock_name = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:NAME_CHARS_MAX]
        with file_lock(self._locks / f"pull-{lock_name}", timeout_s=_PULL_LOCK_TIMEOUT_S):
            yield

    @contextlib.contextmanager
    def scratch(self) -> Iterator[Path]:
        """A private folder on the store's file system for what is not checked yet."""
        with scratch_folder(self._scratch) as folder:
            yield folder

    @contextlib.contextmanager
    def partial(self, source: str) -> Iterator[Path]:
        """The folder for half-finished downloads of `source`: kept on failure, gone on success."""
        folder = self._partial / sha256_digest(source.encode())
        with (
            disk_errors_named(self.root),
            file_lock(self._locks / f"partial-{folder.name}", timeout_s=_PULL_LOCK_TIMEOUT_S),
        ):
            folder.mkdir(mode=0o700, exist_ok=True)
            yield folder
            remove_tree(folder)

    def add(
        self,
        folder: Path,
        manifest: ModelManifest,
        *,
        name: str,
        progress: ProgressCallback = ignore_progress,
    ) -> StoredModel:
        """Take over the manifest's files from `folder` (made with `scratch`) as the model `name`.

        Raises DigestMismatchError if a file is not what the manifest says; the store is unchanged
        then. Adding what is there already repairs it.
        """
        check_name(name)
        for file in manifest.files:
            _check_file(folder, file, progress)
        intact = {file.sha256 for file in manifest.files if self._blobs.is_intact(file, progress)}
        digest = manifest_digest(manifest)
        with disk_errors_named(self.root), self._locked():
            for file in manifest.files:
                if file.sha256 not in intact or not self._blobs.path(file.sha256).exists():
                    self._blobs.adopt(folder / file.path, file)
            self._publish(digest, manifest)
            self.use.touch(digest)
            self._write_names({**self.names(), name: digest})
        stored = StoredModel(digest, self._models / digest, manifest)
        self._checked.keep(stored)
        return stored

    def set_name(self, name: str, digest: Digest) -> None:
        """Call a model `name`, instead of whatever had that name before."""
        check_name(name)
        with self._locked():
            self._write_names({**self.names(), name: digest})

    def remove(self, name_or_digest: str, *, force: bool = False) -> int:
        """Forget a name, or every name of a digest, and delete what nothing names any more.

        Returns the bytes freed. Raises ModelInUseError if a node serves it, unless `force`: workers
        that have the files open keep them until they end.
        """
        with self._locked(), contextlib.ExitStack() as claims:
            names = self.names()
            digest = names.get(name_or_digest, name_or_digest)
            if name_or_digest not in names and digest not in self.digests():
                raise UnknownModelError(
                    f"no model {name_or_digest!r} in {self.root}: see `capanode models list`"
                )
            by_digest = name_or_digest not in names
            kept = {
                name: value
                for name, value in names.items()
                if name != name_or_digest and not (by_digest and value == digest)
            }
            if digest not in kept.values():
                is_free = claims.enter_context(self.use.claim(Digest(digest)))
                if not is_free and not force:
                    raise ModelInUseError(
                        f"a running node serves {name_or_digest}: stop it first, or remove it all "
                        "the same with --force (the node keeps its files until it ends)"
                    )
                remove_tree(self._models / digest)
                self.use.forget(Digest(digest))
                self._checked.forget(Digest(digest))
            self._write_names(kept)
            return self._collect_garbage()

    def collect_garbage(self) -> int:
        """Delete models without a name that no node serves, blobs of no model, scratch of dead
        processes and half-finished downloads; returns the bytes of the blobs."""
        with self._locked():
            for digest in set(self.digests()) - set(self.names().values()):
                with self.use.claim(digest) as is_free:
                    if is_free:
                        remove_tree(self._models / digest)
                        self.use.forget(digest)
                        self._checked.forget(digest)
            for folder in list(self._partial.iterdir()):
                lock = self._locks / f"partial-{folder.name}"
                with contextlib.suppress(StoreBusyError), file_lock(lock, timeout_s=0.0):
                    remove_tree(folder)
            return self._collect_garbage()

    # Below here the store's lock is held, or nothing is changed.

    def _locked(self) -> contextlib.AbstractContextManager[None]:
        return file_lock(self._locks / "store", timeout_s=_STORE_LOCK_TIMEOUT_S)

    def _read(self, digest: Digest) -> StoredModel:
        model = self._reader.read(digest)
        if model is None:
            raise CorruptModelError(
                f"model {digest} in {self.root} is incomplete: pulling it again repairs it"
            )
        return model

    def _write_names(self, names: dict[str, Digest]) -> None:
        write_durably(self._names, json.dumps(names, indent=2, sort_keys=True).encode() + b"\n")

    def _publish(self, digest: Digest, manifest: ModelManifest) -> None:
        """Make the model's folder appear in one rename; leave one that is right already alone,
        since workers may be reading it."""
        place = self._models / digest
        if self._is_linked(place, manifest):
            return
        with scratch_folder(self._scratch) as building:
            for file in manifest.files:
                placed = building / "new" / file.path
                make_readable_folder(placed.parent, below=building / "new")
                self._blobs.place(file.sha256, placed)
                sync_folder(placed.parent)
            write_durably(building / "new" / MANIFEST_NAME, encode_manifest(manifest))
            if place.exists():
                place.rename(building / "old")
            (building / "new").rename(place)
        sync_folder(self._models)

    def _is_linked(self, place: Path, manifest: ModelManifest) -> bool:
        if not self.is_complete(manifest_digest(manifest)):
            return False
        return all(
            (place / file.path).samefile(self._blobs.path(file.sha256)) for file in manifest.files
        )

    def _collect_garbage(self) -> int:
        wanted: set[str] = set()
        for digest in self.digests():
            with contextlib.suppress(CorruptModelError):
                wanted.update(file.sha256 for file in self._read(digest).manifest.files)
        freed = self._blobs.collect(wanted)
        remove_abandoned(self._scratch)
        return freed


def _check_file(folder: Path, file: ModelFile, progress: ProgressCallback) -> None:
    """The folder is what a converter made of a stranger's files: no link in it is followed."""
    try:
        size = size_of(folder, file.path)
        if size != file.bytes:
            raise DigestMismatchError(
                f"{file.path} has {size} bytes, not {file.bytes} as its manifest says"
            )
        actual = sha256_of(folder, file.path, step=f"verify {file.path}", progress=progress)
    except FileNotFoundError:
        raise DigestMismatchError(f"{file.path} is missing from the model that was made") from None
    if actual != file.sha256:
        raise DigestMismatchError(
            f"{file.path} has the digest {actual}, not {file.sha256} as its manifest says"
        )
