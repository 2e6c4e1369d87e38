"""Every file of the store once, by its digest, however many models share it: read-only, and made
durable before anything links to it."""

import errno
import os
import shutil
from collections.abc import Container
from pathlib import Path

from capanode.models.files import (
    READABLE_FILE,
    make_readable_folder,
    sha256_file,
    sync_file,
    sync_folder,
)
from capanode.models.progress import ProgressCallback
from protocol.ids import Digest
from protocol.manifest import ModelFile

# What a file system says that cannot link (FAT, some network mounts) or cannot link this file more.
_NO_LINK_ERRNOS = (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV, errno.ENOSYS)


class BlobFolder:
    """`root/<aa>/<digest>`. A caller that changes it holds the store's lock."""

    def __init__(self, root: Path, *, below: Path) -> None:
        self._root = root
        self._below = below
        make_readable_folder(root, below=below)

    def path(self, digest: Digest) -> Path:
        return self._root / digest[:2] / digest

    def is_intact(self, file: ModelFile, progress: ProgressCallback) -> bool:
        """True if another model brought the file already and it is still what it was."""
        blob = self.path(file.sha256)
        if not blob.exists():
            return False
        return sha256_file(blob, step=f"compare {file.path}", progress=progress) == file.sha256

    def adopt(self, path: Path, file: ModelFile) -> None:
        """Move a checked file among the blobs, in place of a damaged one if there is one."""
        blob = self.path(file.sha256)
        make_readable_folder(blob.parent, below=self._below)
        path.chmod(READABLE_FILE)
        sync_file(path)
        if path.stat().st_nlink > 1:
            # The manifest lists this content under two paths, or a source kept a link to it.
            _copy(path, path := path.with_name(f"{path.name}.own"))
        path.replace(blob)
        sync_folder(blob.parent)

    def place(self, digest: Digest, placed: Path) -> None:
        """Make the blob appear at `placed` too: as a hard link where the file system can."""
        blob = self.path(digest)
        try:
            os.link(blob, placed)
        except OSError as error:
            if error.errno not in _NO_LINK_ERRNOS:
                raise
            _copy(blob, placed)

    def collect(self, wanted: Container[str]) -> int:
        """Delete the blobs whose digests are not `wanted`; returns their bytes."""
        freed = 0
        for blob in list(self._root.glob("*/*")):
            if blob.name not in wanted:
                freed += blob.stat().st_size
                blob.unlink(missing_ok=True)
        return freed


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)
    target.chmod(READABLE_FILE)
    sync_file(target)
