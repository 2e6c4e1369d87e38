"""The few kernel calls that Python's standard library does not wrap. Standard library only."""

import ctypes
import os

_libc = ctypes.CDLL(None, use_errno=True)
_libc.prctl.argtypes = (ctypes.c_int, *4 * (ctypes.c_ulong,))
_libc.mount.argtypes = (*3 * (ctypes.c_char_p,), ctypes.c_ulong, ctypes.c_char_p)
_libc.syscall.restype = ctypes.c_long

PR_SET_PDEATHSIG = 1
PR_SET_SECCOMP = 22
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38


def _raise(what: str) -> None:
    number = ctypes.get_errno()
    raise OSError(number, f"{what}: {os.strerror(number)}")


def prctl(option: int, first: int = 0, second: int = 0) -> None:
    """Raises OSError."""
    if _libc.prctl(option, first, second, 0, 0) != 0:
        _raise(f"prctl {option}")


def syscall(number: int, *arguments: int | bytes | None) -> int:
    """Integers travel as 64 bits, bytes and None as pointers. Raises OSError."""
    converted = [ctypes.c_long(item) if isinstance(item, int) else item for item in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *converted))
    if result < 0:
        _raise(f"system call {number}")
    return result


def unshare(flags: int) -> None:
    """Raises OSError."""
    if _libc.unshare(flags) != 0:
        _raise("make a namespace")


def mount(source: str, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Raises OSError."""
    kind_bytes = None if kind is None else kind.encode()
    if _libc.mount(source.encode(), target.encode(), kind_bytes, flags, options.encode()) != 0:
        _raise(f"mount {source} on {target}")


def load_filter(program: bytes) -> None:
    """Bind this process to a system-call filter, for good. Raises OSError."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))

    header = Program(len(program) // 8, program)
    filter_mode = 2
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    prctl(PR_SET_SECCOMP, filter_mode, ctypes.addressof(header))
