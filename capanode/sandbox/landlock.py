"""The fallback where user namespaces are forbidden: Landlock bounds files, the system-call filter
everything else. Weaker than bwrap: file metadata (stat) of the host stays visible, and the scratch
folder's size is bounded per file only.

Standard library only: runs in the launcher.
"""

import os
import stat
import struct
from collections.abc import Iterable

from capanode.sandbox import kernel

# The same numbers on every architecture.
_CREATE_RULESET = 444
_ADD_RULE = 445
_RESTRICT_SELF = 446
_PATH_BENEATH = 1
_GET_VERSION = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_REFER, _TRUNCATE, _IOCTL_DEVICE = 1 << 13, 1 << 14, 1 << 15
_FILE_RIGHTS = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE

_READ_RIGHTS = _EXECUTE | _READ_FILE | _READ_DIR
# Remove and make files and folders, not devices, sockets or pipes.
_MAKE_AND_REMOVE = 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12
_SCRATCH_RIGHTS = _READ_RIGHTS | _WRITE_FILE | _TRUNCATE | _REFER | _MAKE_AND_REMOVE
_DEVICE_RIGHTS = _READ_FILE | _WRITE_FILE | _IOCTL_DEVICE

# Version 3 (Linux 6.2) is the first that covers truncate: before it, a worker with the node's own
# user id could empty the node's files.
VERSION_MIN = 3


class LandlockUnavailable(Exception):
    """This kernel has no Landlock, or too old a one."""


def landlock_version() -> int:
    """The kernel's Landlock version; 0 without it."""
    try:
        return kernel.syscall(_CREATE_RULESET, None, 0, _GET_VERSION)
    except OSError:
        return 0


def restrict_files(
    *,
    readable: Iterable[str],
    writable: Iterable[str],
    devices: Iterable[str],
    changeable: Iterable[str] = (),
) -> None:
    """From here on this process opens nothing but what is below these paths, for good.

    In `changeable` it writes to what is there and makes nothing new. Paths that are not there are
    skipped. Raises LandlockUnavailable.
    """
    version = landlock_version()
    if version < VERSION_MIN:
        raise LandlockUnavailable(f"Landlock {VERSION_MIN} is needed, this kernel has {version}")
    handled = (1 << 15) - 1 if version < 5 else (1 << 16) - 1
    ruleset = _create_ruleset(version, handled)
    for rights, paths in (
        (_READ_RIGHTS, readable),
        (_SCRATCH_RIGHTS, writable),
        (_DEVICE_RIGHTS, devices),
        (_READ_FILE | _READ_DIR | _WRITE_FILE | _TRUNCATE, changeable),
    ):
        for path in paths:
            _allow(ruleset, path, rights & handled)
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.syscall(_RESTRICT_SELF, ruleset, 0)
    os.close(ruleset)


def _create_ruleset(version: int, handled_files: int) -> int:
    # Version 4 added TCP (bind, connect), version 6 abstract sockets and signals: handle all that
    # the kernel can, and allow none of it. The filter denies them too.
    attributes = struct.pack("<Q", handled_files)
    if version >= 4:
        attributes += struct.pack("<Q", 0b11)
    if version >= 6:
        attributes += struct.pack("<Q", 0b11)
    return kernel.syscall(_CREATE_RULESET, attributes, len(attributes), 0)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            rights &= _FILE_RIGHTS
        kernel.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, struct.pack("<Qi", rights, handle), 0)
    finally:
        os.close(handle)
