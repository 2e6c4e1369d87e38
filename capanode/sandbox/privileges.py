"""From root to a user that owns nothing, before anything that parses a stranger's bytes is started.

A sandbox made by the host's root is no sandbox: files below /proc/sys stay writable from inside.
So the worker gets a user id that owns nothing. That user cannot pass through a folder like /root
(mode 0700) to reach a Python that is installed below it, hence `open_paths`: in a mount namespace
of its own, such a folder is covered by an empty one that holds only the paths in question.

Standard library only: runs as root, before the drop.
"""

import contextlib
import os
import signal
import stat
from collections.abc import Iterable
from pathlib import Path

from capanode.sandbox import kernel

# High enough that no account or subordinate range of a distribution's default set-up owns files
# by it (accounts end at 65,534 and the first two default ranges at 231,071).
WORKER_USER_ID = 231_072

_CLONE_NEWNS = 0x00020000
_MS_RDONLY = 0x1
_MS_NOSUID = 0x2
_MS_NODEV = 0x4
_MS_REMOUNT = 0x20
_MS_BIND = 0x1000
_MS_REC = 0x4000
_MS_PRIVATE = 0x40000
_CAPABILITIES_MAX = 64


def open_paths(readable: Iterable[str], writable: Iterable[str] = ()) -> None:
    """Make each path reachable for every user, in a private mount namespace of this process.

    Only ancestors that others may not pass are covered; below them the paths become binds of what
    they were. Raises OSError, and PermissionError where mounts are not allowed.
    """
    is_writable = {os.path.realpath(path) for path in writable}
    wanted = sorted(
        is_writable.union(map(os.path.realpath, readable)), key=lambda path: path.count("/")
    )
    if all(_first_closed_ancestor(path) is None for path in wanted):
        return
    kernel.unshare(_CLONE_NEWNS)
    kernel.mount("none", "/", None, _MS_REC | _MS_PRIVATE)
    # Opened before the first cover, which may hide what a later path needs.
    handles = {path: os.open(path, os.O_PATH | os.O_CLOEXEC) for path in wanted}
    for path, handle in handles.items():
        closed = _first_closed_ancestor(path)
        if closed is not None:
            kernel.mount("tmpfs", closed, "tmpfs", _MS_NOSUID | _MS_NODEV, "mode=0755,size=1m")
        if not os.path.lexists(path):
            _bind(handle, path, writable=path in is_writable)
        os.close(handle)


def _first_closed_ancestor(path: str) -> str | None:
    """The outermost folder above `path` that others may not enter."""
    for ancestor in reversed(Path(path).parents):
        if ancestor.is_dir() and not ancestor.stat().st_mode & stat.S_IXOTH:
            return str(ancestor)
    return None


def _bind(handle: int, path: str, *, writable: bool) -> None:
    os.makedirs(os.path.dirname(path), mode=0o755, exist_ok=True)
    source = f"/proc/self/fd/{handle}"
    if stat.S_ISDIR(os.fstat(handle).st_mode):
        os.mkdir(path, 0o755)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644))
    kernel.mount(source, path, None, _MS_BIND | _MS_REC)
    if not writable:
        kernel.mount("none", path, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | _MS_NOSUID)


def drop_privileges(user_id: int = WORKER_USER_ID) -> None:
    """Become an unprivileged user with no groups and no way back. Raises OSError."""
    with contextlib.suppress(OSError):  # The kernel knows fewer capabilities than this.
        for capability in range(_CAPABILITIES_MAX):
            kernel.prctl(kernel.PR_CAPBSET_DROP, capability)
    os.setgroups([])
    os.setresgid(user_id, user_id, user_id)
    os.setresuid(user_id, user_id, user_id)


def die_with_parent(parent_pid: int) -> None:
    """Be killed when the node is. A change of user clears this, so call it after the drop."""
    kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise ProcessLookupError("the node is gone already")
