"""Runs inside a fresh sandbox and tries what must not work there: `python -m
capanode.sandbox.selftest CANARY`. Reports one JSON object over its channel and waits, so that the
node can look at it from outside, until the channel closes.

Standard library only, so that it starts fast and proves the sandbox, not the model's libraries.
"""

import ctypes
import errno
import json
import os
import resource
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from capanode.sandbox.inside import Surroundings, read_surroundings
from capanode.sandbox.limits import apply_limits

_AF_VSOCK = 40
_CLONE_NEWUSER = 0x10000000


def main() -> None:
    surroundings = read_surroundings()
    apply_limits(surroundings.limits)
    channel = surroundings.open_channel()
    channel.sendall(json.dumps(_report(Path(sys.argv[1]), surroundings)).encode() + b"\n")
    while channel.recv(64):
        pass
    os._exit(0)


def _report(canary: Path, surroundings: Surroundings) -> dict[str, dict[str, str]]:
    """`refused`: what each forbidden attempt met ("" if it worked). `works`: what a worker needs,
    with what went wrong ("" if nothing)."""
    model, scratch = surroundings.model_dir, surroundings.scratch_dir
    refused: dict[str, Callable[[], object]] = {
        "internet socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
        "unix socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close(),
        "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
        "vsock socket": lambda: socket.socket(_AF_VSOCK, socket.SOCK_STREAM).close(),
        "read a file outside": canary.read_bytes,
        "read the password file": Path("/etc/passwd").read_bytes,
        "list a folder outside": lambda: os.listdir(canary.parent),
        "write to the model": lambda: (model / "written").write_bytes(b"x"),
        "change the model": lambda: (model / "model.txt").open("r+b").close(),
        "write to the program": lambda: Path(__file__).open("r+b").close(),
        "fork": _fork,
        "make a user namespace": lambda: _call("unshare", _CLONE_NEWUSER),
        "become root": lambda: os.setuid(0),
        "change a file's mode": lambda: os.chmod(scratch, 0o700),
        "trace a process": lambda: _call("ptrace", 16, 1, 0, 0),
        "make an anonymous file": lambda: os.close(os.memfd_create("x")),
        "raise a limit": _raise_limit,
        "signal the node": lambda: _signal_outside(),
    }
    works: dict[str, Callable[[], object]] = {
        "read the model": (model / "model.txt").read_bytes,
        "write to scratch": lambda: (scratch / "written").write_bytes(b"x"),
        "start a thread": _start_thread,
        "allocate memory": lambda: bytearray(1 << 20),
        "inherit nothing else": lambda: _check_descriptors(surroundings.channel_fd),
    }
    return {
        "refused": {name: _attempt(action) for name, action in refused.items()},
        "works": {name: _attempt(action) for name, action in works.items()},
    }


def _attempt(action: Callable[[], object]) -> str:
    """The name of the error that the action met, "" if it met none."""
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    except (ValueError, RuntimeError) as error:
        return str(error) or type(error).__name__
    return ""


def _call(name: str, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*map(ctypes.c_long, arguments)) == -1:
        raise OSError(ctypes.get_errno(), name)


def _fork() -> None:
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)


def _raise_limit() -> None:
    _, ceiling = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (ceiling + 1, ceiling + 1))


def _signal_outside() -> None:
    """Signal 0 asks whether one may. The node is our parent, or invisible in a pid namespace."""
    parent = os.getppid()
    if parent <= 1:
        raise ProcessLookupError(errno.ESRCH, "the node is not visible")
    os.kill(parent, 0)


def _start_thread() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


def _check_descriptors(channel_fd: int) -> None:
    """The standard three, the channel, and the one that lists them."""
    extra = {int(name) for name in os.listdir("/proc/self/fd")} - {0, 1, 2, channel_fd}
    if len(extra) > 1:
        raise ValueError(f"open descriptors: {sorted(extra)}")


if __name__ == "__main__":
    main()
