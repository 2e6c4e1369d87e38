"""Locks between processes. The kernel frees them when their process ends, however it ends."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from protocol.errors import CapaError


class AlreadyRunningError(CapaError):
    """Another process holds the lock; the message says which program, and what to do."""


def try_lock(descriptor: int) -> bool:
    """Lock an open file or folder without waiting; False if another process has it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


@contextmanager
def hold_lock(path: Path, *, refusal: str) -> Iterator[None]:
    """Hold the lock file at `path`, made with mode 0600 if it is missing.

    Raises AlreadyRunningError with the text `refusal` if another process has it.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if not try_lock(descriptor):
            raise AlreadyRunningError(refusal)
        yield
    finally:
        os.close(descriptor)
