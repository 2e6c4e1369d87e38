"""Runs inside a sandbox in place of a worker, tries to get out in many ways, and tells how each
attempt ended: the name of the error, or "" where it worked. Takes one JSON argument.
"""

import ctypes
import errno
import fcntl
import json
import mmap
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from capanode.sandbox.inside import Surroundings, read_surroundings
from capanode.sandbox.last_lock import close_sandbox
from capanode.sandbox.limits import apply_limits
from capanode.sandbox.opening import SandboxOpening

_CALLS = {
    "ptrace": (101, 16, 1, 0, 0),
    "personality": (135, 0xFFFFFFFF),
    "pivot_root": (155, 0, 0),
    "chroot": (161, 0),
    "mount": (165, 0, 0, 0, 0, 0),
    "reboot": (169, 0, 0, 0, 0),
    "init_module": (175, 0, 0, 0),
    "kexec_load": (246, 0, 0, 0, 0),
    "add_key": (248, 0, 0, 0, 0, 0),
    "keyctl": (250, 0, 0, 0),
    "unshare": (272, 0x10000000),
    "perf_event_open": (298, 0, 0, -1, -1, 0),
    "open_by_handle_at": (304, -1, 0, 0),
    "setns": (308, 0, 0),
    "process_vm_readv": (310, 1, 0, 0, 0, 0, 0),
    "memfd_create": (319, 0, 0),
    "bpf": (321, 0, 0, 0),
    "userfaultfd": (323, 0),
    "io_uring_setup": (425, 1, 0),
    "open_tree": (428, -1, 0, 0),
    "pidfd_open": (434, 1, 0),
    "pidfd_getfd": (438, 0, 0, 0),
    "landlock_create_ruleset": (444, 0, 0, 1),
    "fork by clone": (56, 17, 0, 0, 0, 0),
    "namespace by clone": (56, 0x10010100, 0, 0, 0, 0),
    "prlimit on another": (302, 1, 7, 0, 0),
    "setpgid": (109, 0, 0),
    "iopl": (172, 3),
    "shmget": (29, 0, 4096, 0o1600),
    "mq_open": (240, 0, 0, 0, 0),
    "fanotify_init": (300, 0, 0),
}

# What the kernel tells of a process, its mounts and its host.
_TELLING_FILES = (
    *("/proc/1/cmdline", "/proc/1/environ", "/proc/self/mounts", "/proc/self/mountinfo"),
    *("/proc/thread-self/mountinfo", "/proc/self/mountstats", "/proc/self/maps"),
    *("/proc/self/cgroup", "/proc/mounts", "/proc/cmdline", "/proc/modules", "/proc/net/unix"),
    *("/proc/sys/kernel/random/boot_id", "/proc/stat", "/proc/keys", "/etc/hostname"),
)

_libc = ctypes.CDLL(None, use_errno=True)


def _system_call(number: int, *arguments: int) -> None:
    if _libc.syscall(ctypes.c_long(number), *map(ctypes.c_long, arguments)) == -1:
        raise OSError(ctypes.get_errno(), "refused")


def _attempt(action: Callable[[], object]) -> str:
    try:
        action()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, type(error).__name__)
    except (ValueError, RuntimeError) as error:
        return type(error).__name__
    return ""


def attempt_calls() -> dict[str, str]:
    return {
        name: _attempt(lambda call=call: _system_call(*call))  # type: ignore[misc]
        for name, call in _CALLS.items()
    }


def attempt_network() -> dict[str, str]:
    families = {"inet": 2, "inet6": 10, "unix": 1, "netlink": 16, "packet": 17, "alg": 38}
    return {
        **{
            name: _attempt(lambda family=family: socket.socket(family).close())  # type: ignore[misc]
            for name, family in families.items()
        },
        "datagram pair": _attempt(lambda: socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)),
        "vsock": _attempt(lambda: socket.socket(40).close()),
        "name lookup": _attempt(lambda: socket.getaddrinfo("example.com", 80)),
        "loopback": _attempt(lambda: socket.create_connection(("127.0.0.1", 22), timeout=1)),
        "socket pair of another family": _attempt(lambda: socket.socketpair(16, 3)),
    }


def attempt_files(secret: str, model: Path) -> dict[str, str]:
    """`secret` is a file of the node's own, readable by the node's user only."""
    weights = model / "behaviour"
    return {
        "node key": _attempt(Path(secret).read_bytes),
        "node key through init's root": _attempt(Path(f"/proc/1/root{secret}").read_bytes),
        "node key by a link": _attempt(lambda: _read_by_link(secret)),
        "shadow": _attempt(Path("/etc/shadow").read_bytes),
        "home": _attempt(lambda: os.listdir("/root/.ssh")),
        "parent's memory": _attempt(lambda: Path(f"/proc/{os.getppid()}/mem").open("rb").close()),
        "core pattern": _attempt(
            lambda: Path("/proc/sys/kernel/core_pattern").write_text("|/bin/sh")
        ),
        "sysrq": _attempt(lambda: Path("/proc/sysrq-trigger").write_text("b")),
        "write a weight": _attempt(lambda: weights.write_bytes(b"x")),
        "truncate a weight": _attempt(lambda: os.truncate(weights, 0)),
        "replace a weight": _attempt(lambda: weights.unlink()),
        "rename a weight": _attempt(lambda: weights.rename(model / "other")),
        "open a weight to others": _attempt(lambda: weights.chmod(0o777)),
        "change the engine": _attempt(lambda: Path(__file__).write_text("x")),
        "add a package": _attempt(lambda: _add_package()),
        "write to the root": _attempt(lambda: Path("/written").write_text("x")),
        "write to /dev": _attempt(lambda: Path("/dev/written").write_text("x")),
        "make a device": _attempt(lambda: os.mknod("device", 0o60666, os.makedev(8, 0))),
        "run a shell": _attempt(lambda: os.execv("/bin/sh", ["sh", "-c", "true"])),
        "run a subprocess": _attempt(lambda: subprocess.run([sys.executable, "-V"], check=True)),
    }


def _read_by_link(secret: str) -> None:
    os.symlink(secret, "link")
    Path("link").read_bytes()


def _add_package() -> None:
    folder = next(path for path in sys.path if path.startswith("/site/") or "-packages" in path)
    Path(folder, "added.py").write_text("x")


def fill_scratch(scratch: Path) -> dict[str, int]:
    """How many MiB fit into the scratch folder, over files that are each within their limit."""
    written = 0
    try:
        for number in range(64):
            with (scratch / f"fill{number}").open("wb", buffering=0) as file:
                for _ in range(8):
                    written += file.write(bytes(1 << 20))
    except OSError:
        pass
    return {"mib": written >> 20}


def start_threads(limit: int) -> dict[str, int]:
    """How many threads can be started at once."""
    release = threading.Event()
    started = 0
    try:
        for _ in range(limit):
            threading.Thread(target=release.wait, daemon=True).start()
            started += 1
    except RuntimeError:
        pass
    release.set()
    return {"threads": started}


def describe(surroundings: Surroundings) -> dict[str, object]:
    return {
        "environment": dict(os.environ),
        "descriptors": [number for number in range(4_096) if _is_open(number)],
        "channel": surroundings.channel_fd,
        "user": os.getuid(),
        "groups": os.getgroups(),
        "command": [*sys.orig_argv],
        **{path: _text(path) for path in _TELLING_FILES},
        "processes": _names("/proc"),
        "root": _names("/"),
    }


def _is_open(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def _text(path: str) -> str:
    try:
        return Path(path).read_bytes().replace(b"\0", b" ").decode()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _names(path: str) -> list[str]:
    try:
        return sorted(os.listdir(path))
    except OSError:
        return []


def call_in_foreign_architecture(kind: str) -> dict[str, str]:
    """Does not return if the filter does its work: the process is killed."""
    if kind == "x32":
        _libc.syscall(ctypes.c_long(0x40000000 | 39))
    else:
        # mov eax, 20 (getpid in the i386 table); int 0x80; ret
        code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        code.write(b"\xb8\x14\x00\x00\x00\xcd\x80\xc3")
        ctypes.CFUNCTYPE(ctypes.c_int)(ctypes.addressof(ctypes.c_char.from_buffer(code)))()
    return {"result": "survived"}


def compile_and_close(scratch: Path) -> dict[str, object]:
    """What a compiled function answers, and how a new process ends after the last lock."""
    source, library = scratch / "answer.c", scratch / "answer.so"
    source.write_text("int answer(void) { return 42; }")
    command = ["gcc", "-shared", "-fPIC", "-o", str(library), str(source)]
    subprocess.run(command, check=True)
    before = ctypes.CDLL(str(library)).answer()
    close_sandbox(SandboxOpening.START, gpu=False)
    return {"before": before, "after": _attempt(lambda: subprocess.run(command, check=True))}


def main() -> None:
    surroundings = read_surroundings()
    apply_limits(surroundings.limits)
    order = json.loads(sys.argv[1])
    channel = surroundings.open_channel()
    answers: dict[str, Callable[[], object]] = {
        "calls": attempt_calls,
        "network": attempt_network,
        "files": lambda: attempt_files(order["secret"], surroundings.model_dir),
        "scratch": lambda: fill_scratch(surroundings.scratch_dir),
        "threads": lambda: start_threads(order["limit"]),
        "describe": lambda: describe(surroundings),
        "foreign": lambda: call_in_foreign_architecture(order["kind"]),
        "compile": lambda: compile_and_close(surroundings.scratch_dir),
        "tools": lambda: {"found": [name for name in ("cc", "gcc", "ld") if shutil.which(name)]},
        "sleep": lambda: {},
    }
    channel.sendall(json.dumps(answers[order["do"]]()).encode() + b"\n")
    if order["do"] == "sleep":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(3_600)  # Does not look at its channel: only a kill ends it.


if __name__ == "__main__":
    main()
