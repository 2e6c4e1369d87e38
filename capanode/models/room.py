"""Whether there is room for a new model: on the disk, and in what the operator gives to models.

Looked at before the first byte comes: a download of an hour must not fail in its last minute.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass

from capanode.models.errors import CorruptModelError, StoreFullError
from capanode.models.eviction import KeptModel, plan_eviction
from capanode.models.foreign_tree import list_files, size_of
from capanode.models.progress import Progress, ProgressCallback, ignore_progress
from capanode.models.sources import FileSource, is_wanted_local
from capanode.models.store import ModelStore
from protocol.ids import Digest

# Room that a pull leaves on the disk for everyone else.
SPARE_BYTES = 256 * 1024 * 1024
# A .gguf of four bits is copied, and may be converted to sixteen.
_GGUF_GROWTH = 4


@dataclass(frozen=True, slots=True)
class Quota:
    """`bytes_max` of 0 is no limit. `promised` are the names and digests that the configuration
    lists; None if it lists none, so that a node serves all that is here."""

    bytes_max: int = 0
    promised: frozenset[str] | None = None


NO_QUOTA = Quota()


def make_room(
    store: ModelStore,
    wanted: Mapping[Digest, int],
    name: str,
    *,
    work_bytes: int,
    quota: Quota,
    progress: ProgressCallback = ignore_progress,
) -> None:
    """For a model whose files are `wanted` (bytes by digest), and which needs `work_bytes` of disk
    until it is there. Removes other models if the quota demands it. Raises StoreFullError."""
    if quota.bytes_max:
        for model in plan_eviction(_kept(store, quota), wanted=wanted, bytes_max=quota.bytes_max):
            freed = store.remove(model.digest)
            progress(Progress(f"remove {model.name}, unused for longest", freed, freed))
    need = work_bytes + SPARE_BYTES
    free = shutil.disk_usage(store.root).free
    if free < need:
        raise StoreFullError(
            f"{name} needs {need / 1e6:.0f} MB under {store.root}, where {free / 1e6:.0f} MB are "
            "free: free some space, or remove a model (`capanode models rm NAME`)"
        )


def local_bytes(source: FileSource) -> dict[Digest, int]:
    """What a model of this machine takes, at most, while it is taken over."""
    path = source.path
    if path.is_dir():
        names = list_files(path, is_wanted=is_wanted_local)
        return {Digest(str(path / name)): size_of(path, name) for name in names}
    size = path.stat().st_size if path.is_file() else 0
    return {Digest(str(path)): size * (1 + _GGUF_GROWTH)}


def _kept(store: ModelStore, quota: Quota) -> list[KeptModel]:
    names: dict[Digest, list[str]] = {}
    for name, digest in store.names().items():
        names.setdefault(digest, []).append(name)
    kept = []
    for digest, called in names.items():
        try:
            files = store.find(digest).manifest.files
        except CorruptModelError:
            continue
        kept.append(
            KeptModel(
                name=called[0],
                digest=digest,
                blobs={file.sha256: file.bytes for file in files},
                last_used_s=store.use.last_used_s(digest) or 0.0,
                keep=_why_kept(store, digest, called, quota),
            )
        )
    return kept


def _why_kept(store: ModelStore, digest: Digest, names: list[str], quota: Quota) -> str:
    if store.use.is_held(digest):
        return "served"
    if quota.promised is None:
        return "served, as the configuration lists no models"
    return "promised" if quota.promised & {digest, *names} else ""
