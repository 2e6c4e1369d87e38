"""Reading folders and archives that others made: the one way for every source of models.

A link in such a folder may lead to any file of this user, the node's key among them, which would
then be published as a file of the model. So a path is opened part by part without following a link,
and only regular files are read.
"""

import errno
import os
import stat
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path, PurePosixPath

from capanode.models.errors import UnsafeModelError
from capanode.models.files import sha256_stream
from capanode.models.progress import Progress, ProgressCallback
from protocol.ids import Digest

# A sharded model has a few hundred files; a home directory that was named by mistake has more.
ENTRIES_MAX = 10_000

_CHUNK_BYTES = 1024 * 1024
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# Not blocking, so that a pipe by the name of a file is refused instead of waited for.
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
# What opening a link says, at the end of a path and within it.
_LINK_ERRNOS = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO)


def list_files(root: Path, *, is_wanted: Callable[[str], bool]) -> list[str]:
    """The wanted files below `root` as relative paths, in order. Hidden folders are left out.

    Raises UnsafeModelError at the first link, wanted or not: what it stands for is not here.
    """
    found: list[str] = []
    entries = 0
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        entries += len(folders) + len(names)
        if entries > ENTRIES_MAX:
            raise UnsafeModelError(
                f"{root} holds more than {ENTRIES_MAX} files: name the model's own folder"
            )
        for name in (*folders, *names):
            path = Path(folder, name)
            if path.is_symlink():
                raise _link_error(root, path.relative_to(root).as_posix())
        relative = (Path(folder, name).relative_to(root).as_posix() for name in names)
        found += [path for path in relative if is_wanted(path)]
    return sorted(found)


@contextmanager
def open_file(root: Path, relative: str) -> Iterator[FileIO]:
    """A regular file below `root`, without following a link on the way to it.

    Raises UnsafeModelError for a link, for anything but a file, and for a path that leaves `root`.
    """
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        *parents, name = _checked_parts(relative)
        for part in parents:
            inner = os.open(part, _FOLDER_FLAGS, dir_fd=folder)
            os.close(folder)
            folder = inner
        descriptor = os.open(name, _FILE_FLAGS, dir_fd=folder)
    except OSError as error:
        if error.errno in _LINK_ERRNOS:
            raise _link_error(root, relative) from error
        raise
    finally:
        os.close(folder)
    with FileIO(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise UnsafeModelError(f"{relative[:100]!r} in {root} is not a regular file")
        yield file


def size_of(root: Path, relative: str) -> int:
    with open_file(root, relative) as file:
        return os.fstat(file.fileno()).st_size


def sha256_of(root: Path, relative: str, *, step: str, progress: ProgressCallback) -> Digest:
    """Hash a file of the tree, telling how far it is."""
    with open_file(root, relative) as file:
        return sha256_stream(file, step=step, progress=progress)


def copy_files(
    root: Path, placed: dict[str, Path], *, step: str, progress: ProgressCallback
) -> None:
    """Copy files of the tree, each to its new path; nothing there is overwritten."""
    total, done = sum(size_of(root, relative) for relative in placed), 0
    for relative, target in placed.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        with open_file(root, relative) as reading, target.open("xb") as writing:
            while chunk := reading.read(_CHUNK_BYTES):
                writing.write(chunk)
                done += len(chunk)
                progress(Progress(step, done, max(total, done)))


def check_member(archive: Path, member: zipfile.ZipInfo) -> None:
    """Raises UnsafeModelError unless a member of an archive is a plain file that stays inside."""
    _checked_parts(member.filename)
    mode = member.external_attr >> 16
    if member.is_dir() or (stat.S_IFMT(mode) not in (0, stat.S_IFREG)):
        raise UnsafeModelError(f"{member.filename[:100]!r} in {archive.name} is not a regular file")


def _checked_parts(relative: str) -> tuple[str, ...]:
    path = PurePosixPath(relative)
    is_plain = str(path) == relative and "\\" not in relative and "\0" not in relative
    if not is_plain or path.is_absolute() or ".." in path.parts or not path.parts:
        raise UnsafeModelError(f"{relative[:100]!r} does not stay inside its folder")
    return path.parts


def _link_error(root: Path, relative: str) -> UnsafeModelError:
    return UnsafeModelError(
        f"{relative[:100]!r} in {root} is a link, and links of a model's folder are not followed: "
        f"if you trust what they lead to, `cp -rL {root} COPY` makes a folder without links"
    )
