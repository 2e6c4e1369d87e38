"""A few disk operations that survive a crash: durable writes, locks between processes, hashes."""

import contextlib
import errno
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from io import RawIOBase
from pathlib import Path

from capanode.models.errors import StorageDeniedError, StoreBusyError, StoreFullError
from capanode.models.progress import Progress, ProgressCallback
from protocol.ids import Digest
from protocol.programs.locks import try_lock

# Every user may read a model and no user may change it: workers run under another uid than the
# node.
READABLE_FILE = 0o444
READABLE_FOLDER = 0o755

_CHUNK_BYTES = 1024 * 1024
_LOCK_POLL_S = 0.1


@contextlib.contextmanager
def disk_errors_named(folder: Path) -> Iterator[None]:
    """Turn "no space left" and "permission denied" into errors that name the folder and the way
    out."""
    try:
        yield
    except PermissionError as error:
        raise StorageDeniedError(
            f"cannot write to {folder}: give it to this user, or choose another place for models "
            "with --model-store (`model_store`)"
        ) from error
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StoreFullError(
                f"the disk under {folder} is full: free some space or remove a model "
                "(`capanode models rm NAME`), then try again"
            ) from error
        raise


def make_readable_folder(folder: Path, *, below: Path) -> None:
    """Make `folder` and its parents up to `below` readable for every uid, whatever the umask."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        if folder.stat().st_mode & 0o777 != READABLE_FOLDER:
            folder.chmod(READABLE_FOLDER)
        if folder in (below, folder.parent):
            return
        folder = folder.parent


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_durably(path: Path, data: bytes, *, mode: int = READABLE_FILE) -> None:
    """Replace `path` in one step: readers see the old bytes or the new, also after a power cut."""
    with disk_errors_named(path.parent):
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with temporary.open("xb") as file:
                file.write(data)
                os.fchmod(file.fileno(), mode)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:
            # Whatever stopped the write, no half of a file stays behind.
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def sha256_file(path: Path, *, step: str, progress: ProgressCallback) -> Digest:
    """Hash a file of our own, telling how far it is."""
    with path.open("rb", buffering=0) as file:
        return sha256_stream(file, step=step, progress=progress)


def sha256_stream(file: RawIOBase, *, step: str, progress: ProgressCallback) -> Digest:
    """Hash an open file from where it is to its end."""
    total, done = os.fstat(file.fileno()).st_size, 0
    digest = hashlib.sha256()
    while chunk := file.read(_CHUNK_BYTES):
        digest.update(chunk)
        done += len(chunk)
        progress(Progress(step, done, total))
    return Digest(digest.hexdigest())


@contextlib.contextmanager
def file_lock(path: Path, *, timeout_s: float) -> Iterator[None]:
    """Hold an exclusive lock between processes; the kernel frees it if we die.

    Raises StoreBusyError after `timeout_s`.
    """
    deadline_s = time.monotonic() + timeout_s
    with disk_errors_named(path.parent):
        file = path.open("ab")
    with file:
        while not try_lock(file.fileno()):
            if time.monotonic() >= deadline_s:
                raise StoreBusyError(
                    f"another process has held {path} for over {timeout_s:.0f} s: wait for its "
                    "pull to end, or stop it"
                )
            time.sleep(_LOCK_POLL_S)
        yield


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """A private folder that is gone afterwards. It is locked while in use, so that
    `remove_abandoned` can tell it from one whose process was killed."""
    with disk_errors_named(parent):
        folder = parent / secrets.token_hex(8)
        folder.mkdir(mode=0o700)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try_lock(descriptor)
        yield folder
    finally:
        remove_tree(folder)
        os.close(descriptor)


def remove_abandoned(parent: Path) -> None:
    """Delete scratch folders that no living process holds."""
    for folder in list(parent.iterdir()):
        try:
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            if try_lock(descriptor):
                remove_tree(folder)
        finally:
            os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Delete `folder` and what is in it; what is already gone is no error."""
    for root, folders, files in os.walk(folder, topdown=False):
        for name in files:
            (Path(root) / name).unlink(missing_ok=True)
        for name in folders:
            child = Path(root) / name
            if child.is_symlink():
                child.unlink(missing_ok=True)
            else:
                child.rmdir()
    with contextlib.suppress(FileNotFoundError):
        folder.rmdir()
