"""Runs inside a fresh sandbox and tries what must not work there: `python -m
capanode.sandbox.selftest CANARY SOCKET [gpu]`.

Reports one JSON object over its channel and waits, so that the node can look at it from outside,
until the channel closes. With `gpu` it also does what CUDA's driver does, and starts it.

Standard library only, so that it starts fast and proves the sandbox, not the model's libraries.
"""

import array
import ctypes
import errno
import fcntl
import json
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from capanode.sandbox.cuda_start import LIBRARY, start_cuda
from capanode.sandbox.inside import Surroundings, read_surroundings
from capanode.sandbox.limits import apply_limits

_AF_VSOCK = 40
_CLONE_NEWUSER = 0x10000000

# Requests that give a descriptor an owner whom the kernel then signals. Python names not all.
_F_SETOWN_EX = 15
_FIOASYNC, _FIOSETOWN, _SIOCSPGRP = 0x5452, 0x8901, 0x8902

_KERNEL_SETTING = Path("/proc/sys/kernel/core_pattern")

# What the node looks for in the report: how the driver's start ended.
START_CUDA = "start CUDA"

# Descriptors that were inherited may lie above the limit that is in force since.
_DESCRIPTORS_MAX = 4_096


def main() -> None:
    surroundings = read_surroundings()
    apply_limits(surroundings.limits)
    channel = surroundings.open_channel()
    canary, host_socket, *words = sys.argv[1:]
    report = _report(canary, host_socket, surroundings, needs_gpu="gpu" in words)
    channel.sendall(json.dumps(report).encode() + b"\n")
    while channel.recv(64):
        pass
    os._exit(0)


def _report(
    canary: str, host_socket: str, surroundings: Surroundings, *, needs_gpu: bool
) -> dict[str, dict[str, str]]:
    """`refused`: what each forbidden attempt met ("" if it worked). `works`: what a worker needs,
    with what went wrong ("" if nothing)."""
    refused = {
        **_file_attempts(Path(canary), surroundings),
        **_socket_attempts(host_socket),
        **_signal_attempts(),
        **_privilege_attempts(surroundings),
    }
    works: dict[str, Callable[[], object]] = {
        "read the model": (surroundings.model_dir / "model.txt").read_bytes,
        "write to scratch": lambda: (surroundings.scratch_dir / "written").write_bytes(b"x"),
        "start a thread": _start_thread,
        "allocate memory": lambda: bytearray(1 << 20),
        "inherit nothing else": lambda: _check_descriptors(surroundings.channel_fd),
        **(_driver_needs() if needs_gpu else {}),
    }
    return {
        "refused": {name: _attempt(action) for name, action in refused.items()},
        "works": {name: _attempt(action) for name, action in works.items()},
    }


_Attempts = dict[str, Callable[[], object]]


def _driver_needs() -> _Attempts:
    """The last one starts threads and opens devices, so it comes after all else."""
    return {
        "name a thread": lambda: _own_thread("comm").write_text("selftest"),
        "listen for the driver": lambda: _listen().close(),
        START_CUDA: _start_cuda,
    }


def _own_thread(name: str) -> Path:
    return Path(f"/proc/self/task/{threading.get_native_id()}/{name}")


def _listen() -> socket.socket:
    """As CUDA's unified memory does: an abstract socket of packets."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(f"\0cuda-uvmfd-selftest-{os.getpid()}")
    listener.listen(1)
    return listener


def _start_cuda() -> None:
    try:
        refused = start_cuda()
    except OSError as error:
        raise RuntimeError(f"{LIBRARY} does not load: {error}") from None
    if refused is not None:
        raise RuntimeError(str(refused))


def _accept() -> None:
    with _listen() as listener:
        listener.settimeout(0)
        listener.accept()


def _connect(address: str) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as packets:
        packets.connect(address)


def _file_attempts(canary: Path, surroundings: Surroundings) -> _Attempts:
    model = surroundings.model_dir
    return {
        "read a file outside": canary.read_bytes,
        "read the password file": Path("/etc/passwd").read_bytes,
        "list a folder outside": lambda: os.listdir(canary.parent),
        "write to the model": lambda: (model / "written").write_bytes(b"x"),
        "change the model": lambda: (model / "model.txt").open("r+b").close(),
        "write to the program": lambda: Path(__file__).open("r+b").close(),
        "read the mount table": Path("/proc/self/mountinfo").read_bytes,
        "read the node's environment": Path(f"/proc/{os.getppid()}/environ").read_bytes,
        "change a kernel setting": lambda: _KERNEL_SETTING.write_text("|/bin/sh"),
        "change a file's mode": lambda: os.chmod(surroundings.scratch_dir, 0o700),
        "lease a file": lambda: _with_file(model, fcntl.F_SETLEASE, fcntl.F_RDLCK),
        "watch a folder": lambda: _with_file(surroundings.scratch_dir, fcntl.F_NOTIFY, 0x1),
        "lock a file": lambda: _with_file(model, fcntl.F_SETLK, bytes(32)),
        "make an anonymous file": lambda: os.close(os.memfd_create("x")),
        "grow a pipe": lambda: _with_pipe(fcntl.F_SETPIPE_SZ, 1 << 20),
    }


def _socket_attempts(host_socket: str) -> _Attempts:
    """`host_socket` is the path, and the abstract name, of two sockets that hear datagrams."""
    return {
        "internet socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM).close(),
        "unix socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_STREAM).close(),
        "netlink socket": lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW).close(),
        "vsock socket": lambda: socket.socket(_AF_VSOCK, socket.SOCK_STREAM).close(),
        "datagram to a socket": lambda: _send_datagram(socket.SOCK_DGRAM, host_socket),
        "datagram to an abstract socket": lambda: _send_datagram(
            socket.SOCK_DGRAM, f"\0{host_socket}"
        ),
        "packet to a socket": lambda: _send_datagram(socket.SOCK_SEQPACKET, host_socket),
        "address on a stream": lambda: _send_datagram(socket.SOCK_STREAM, host_socket),
        "pass a descriptor": _pass_descriptor,
        "datagram socket": lambda: socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM).close(),
        "connect to a socket": lambda: _connect(host_socket),
        "connect to an abstract socket": lambda: _connect(f"\0{host_socket}"),
        "accept a connection": _accept,
    }


def _signal_attempts() -> _Attempts:
    """Each way to have a signal sent to another process; where the node is not visible, the
    sandbox's own process stands for it, and the request itself must be refused."""
    node = os.getppid() or os.getpid()
    owner = array.array("i", (1, node))
    return {
        "signal the node": _signal_outside,
        "own input for the node": lambda: _with_pipe(fcntl.F_SETOWN, node),
        "own input for the node, extended": lambda: _with_pipe(_F_SETOWN_EX, owner.tobytes()),
        "choose the signal": lambda: _with_pipe(fcntl.F_SETSIG, signal.SIGUSR1),
        "signal on input": lambda: _with_pipe(fcntl.F_SETFL, os.O_NONBLOCK | os.O_ASYNC),
        "signal on input by ioctl": lambda: _ioctl(_FIOASYNC, 1),
        "own input by ioctl": lambda: _ioctl(_FIOSETOWN, node),
        "own a socket by ioctl": lambda: _ioctl(_SIOCSPGRP, node),
    }


def _privilege_attempts(surroundings: Surroundings) -> _Attempts:
    return {
        "fork": _fork,
        "make a user namespace": lambda: _call("unshare", _CLONE_NEWUSER),
        "become root": lambda: os.setuid(0),
        "trace a process": lambda: _call("ptrace", 16, 1, 0, 0),
        "raise a limit": _raise_limit,
        "take back its priority": lambda: os.setpriority(os.PRIO_PROCESS, 0, 0),
        "set another's priority": lambda: os.setpriority(os.PRIO_PROCESS, os.getppid() or 1, 19),
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


def _send_datagram(kind: int, address: str) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, kind)
    with ours, theirs:
        ours.sendto(b"from the sandbox", address)


def _pass_descriptor() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        socket.send_fds(ours, [b"x"], [0])


def _with_file(path: Path, command: int, argument: int | bytes) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.fcntl(descriptor, command, argument)
    finally:
        os.close(descriptor)


def _with_pipe(command: int, argument: int | bytes) -> None:
    ends = os.pipe()
    try:
        fcntl.fcntl(ends[0], command, argument)
    finally:
        for end in ends:
            os.close(end)


def _ioctl(request: int, argument: int) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        fcntl.ioctl(ours, request, array.array("i", (argument,)).tobytes())


def _start_thread() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


def _check_descriptors(channel_fd: int) -> None:
    """Only the standard three and the channel are open."""
    extra = set(filter(_is_open, range(_DESCRIPTORS_MAX))) - {0, 1, 2, channel_fd}
    if extra:
        raise ValueError(f"open descriptors: {sorted(extra)}")


def _is_open(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main()
