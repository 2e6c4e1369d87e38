"""Which models running nodes serve, and when each was served last: a file per model, locked for as
long as a node has it, so that the kernel takes the mark away when the node ends, however it ends.

Nodes that share a store see each other's marks. Who may not write to a store can serve from it all
the same, unmarked: its models are then its owner's to keep.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import structlog

from capanode.models.errors import StorageDeniedError
from capanode.models.files import disk_errors_named, make_readable_folder
from protocol.ids import Digest

log = structlog.get_logger(__name__)

_FILE_MODE = 0o666


class UseMarks:
    """The marks below `folder`; the time of a mark's file is when its model was last used."""

    def __init__(self, folder: Path, *, below: Path) -> None:
        self._folder = folder
        self._below = below

    @contextlib.contextmanager
    def hold(self, digests: Iterable[Digest]) -> Iterator[None]:
        """Mark these models as served, as far as we may write here."""
        with contextlib.ExitStack() as held, disk_errors_named(self._folder):
            for digest in digests:
                try:
                    descriptor = self._open(digest)
                except StorageDeniedError as error:
                    log.warning("served_model_not_marked", model=digest, error=str(error))
                    continue
                held.callback(os.close, descriptor)
                held.callback(self.touch, digest)
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                self.touch(digest)
            yield

    @contextlib.contextmanager
    def claim(self, digest: Digest) -> Iterator[bool]:
        """True if no node serves it; none can begin to until this ends."""
        descriptor = self._open(digest)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            else:
                yield True
        finally:
            os.close(descriptor)

    def is_held(self, digest: Digest) -> bool:
        if not (self._folder / digest).exists():
            return False
        with self.claim(digest) as is_free:
            return not is_free

    def touch(self, digest: Digest) -> None:
        """It is used now."""
        with contextlib.suppress(StorageDeniedError, PermissionError):
            os.close(self._open(digest))
            os.utime(self._folder / digest)

    def last_used_s(self, digest: Digest) -> float | None:
        """Seconds since 1970; now, while it is served."""
        try:
            stamp = (self._folder / digest).stat().st_mtime
        except FileNotFoundError:
            return None
        return time.time() if self.is_held(digest) else stamp

    def forget(self, digest: Digest) -> None:
        """It was removed. The caller has claimed it, or takes it away from a node by force."""
        (self._folder / digest).unlink(missing_ok=True)

    def _open(self, digest: Digest) -> int:
        with disk_errors_named(self._folder):
            make_readable_folder(self._folder, below=self._below)
            return os.open(
                self._folder / digest, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE
            )
