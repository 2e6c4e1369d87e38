"""The system calls that a worker may make, as a classic BPF program for x86-64.

Allow-list: whatever is not named here fails with EPERM; a foreign architecture (i386, x32) kills
the process, because its numbers would mean other calls. The list was found by running torch,
tokenizers, safetensors and Pillow under it. Numbers are the kernel's own and stable, so no libc
header or libseccomp is needed.
"""

import errno
import platform
import struct
from dataclasses import dataclass

# Opcodes of classic BPF, as `linux/bpf_common.h` combines them.
_LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
_AND = 0x54  # BPF_ALU | BPF_AND | BPF_K
_JUMP_EQUAL = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_JUMP_AT_LEAST = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_RETURN = 0x06  # BPF_RET | BPF_K

_KILL_PROCESS = 0x80000000
_ALLOW = 0x7FFF0000
_FAIL = 0x00050000

# Offsets in `struct seccomp_data`. An argument is 64 bits wide. Of ints and flag words the kernel
# reads the low half only, and so does the filter; of pointers both halves are compared.
_NUMBER_AT = 0
_ARCHITECTURE_AT = 4
_ARGUMENTS_AT = 16

_AUDIT_ARCH_X86_64 = 0xC000003E
_X32_BIT = 0x40000000

_CALLS: dict[str, int] = {
    "read": 0, "write": 1, "open": 2, "close": 3, "stat": 4, "fstat": 5, "lstat": 6, "poll": 7,
    "lseek": 8, "mmap": 9, "mprotect": 10, "munmap": 11, "brk": 12, "rt_sigaction": 13,
    "rt_sigprocmask": 14, "rt_sigreturn": 15, "pread64": 17, "pwrite64": 18, "readv": 19,
    "writev": 20, "access": 21, "pipe": 22, "select": 23, "sched_yield": 24, "mremap": 25,
    "msync": 26, "mincore": 27, "madvise": 28, "dup": 32, "dup2": 33, "pause": 34,
    "nanosleep": 35, "getitimer": 36, "alarm": 37, "setitimer": 38, "getpid": 39, "sendfile": 40,
    "recvfrom": 45, "shutdown": 48, "execve": 59, "exit": 60, "wait4": 61, "uname": 63,
    "fsync": 74, "fdatasync": 75,
    "truncate": 76, "ftruncate": 77, "getdents": 78, "getcwd": 79, "chdir": 80, "rename": 82,
    "mkdir": 83, "rmdir": 84, "link": 86, "unlink": 87, "symlink": 88, "readlink": 89,
    "umask": 95, "gettimeofday": 96, "getrlimit": 97, "getrusage": 98, "sysinfo": 99,
    "times": 100, "getuid": 102, "getgid": 104, "geteuid": 107, "getegid": 108, "getppid": 110,
    "getpgrp": 111, "getgroups": 115, "getresuid": 118, "getresgid": 120, "getpgid": 121,
    "getsid": 124, "sigaltstack": 131, "statfs": 137, "fstatfs": 138, "getpriority": 140,
    "sched_getparam": 143, "sched_getscheduler": 145, "sched_get_priority_max": 146,
    "sched_get_priority_min": 147, "arch_prctl": 158, "gettid": 186, "futex": 202,
    "sched_getaffinity": 204, "epoll_create": 213, "getdents64": 217, "set_tid_address": 218,
    "restart_syscall": 219, "fadvise64": 221, "clock_gettime": 228, "clock_getres": 229,
    "clock_nanosleep": 230, "exit_group": 231, "epoll_wait": 232, "epoll_ctl": 233, "mbind": 237,
    "set_mempolicy": 238, "get_mempolicy": 239, "waitid": 247, "openat": 257, "mkdirat": 258,
    "newfstatat": 262, "unlinkat": 263, "renameat": 264, "readlinkat": 267, "faccessat": 269,
    "pselect6": 270, "ppoll": 271, "set_robust_list": 273, "get_robust_list": 274,
    "epoll_pwait": 281, "timerfd_create": 283, "eventfd": 284, "fallocate": 285,
    "timerfd_settime": 286, "eventfd2": 290, "epoll_create1": 291, "dup3": 292, "pipe2": 293,
    "preadv": 295, "pwritev": 296, "getcpu": 309, "renameat2": 316, "getrandom": 318,
    "membarrier": 324, "copy_file_range": 326, "preadv2": 327, "pwritev2": 328, "statx": 332,
    "rseq": 334, "close_range": 436, "faccessat2": 439, "epoll_pwait2": 441, "futex_waitv": 449,
}  # fmt: skip

# CUDA pins host memory, its driver passes anonymous files to itself, its cache of compiled kernels
# (in the scratch folder) is locked while it is written, and its unified memory listens on an
# abstract socket (`cuda-uvmfd-…`) without which two sources say that it does not start. Such a
# socket is made below, of one kind only; that it accepts or connects is never allowed.
_GPU_CALLS: dict[str, int] = {
    "bind": 49, "listen": 50, "flock": 73, "mlock": 149, "munlock": 150, "memfd_create": 319,
    "mlock2": 325,
}  # fmt: skip

# What a program may do beyond that while its sandbox is open for its start: run others (which have
# the same filter), lead a session of them, and set the mode of a file that it made.
_START_CALLS: dict[str, int] = {
    "fork": 57, "vfork": 58, "chmod": 90, "fchmod": 91, "setpgid": 109, "setsid": 112,
    "rt_sigtimedwait": 128, "rt_sigsuspend": 130, "flock": 73, "fchmodat": 268,
}  # fmt: skip
# And what processes need that talk to each other, in a network of their own without a way out.
_TALK_CALLS: dict[str, int] = {
    "connect": 42, "accept": 43, "sendto": 44, "sendmsg": 46, "recvmsg": 47, "bind": 49,
    "listen": 50, "getsockname": 51, "getpeername": 52, "setsockopt": 54, "getsockopt": 55,
    "accept4": 288, "recvmmsg": 299, "sendmmsg": 307,
}  # fmt: skip

_IOCTL = 16
_SOCKET = 41
_SENDTO = 44
_SOCKETPAIR = 53
_CLONE = 56
_KILL = 62
_FCNTL = 72
_SETPRIORITY = 141
_PRCTL = 157
_SCHED_SETAFFINITY = 203
_TGKILL = 234
_PRLIMIT64 = 302
_CLONE3 = 435

# With these a program adds a filter to its own, for all its threads at once.
SECCOMP = 317
SECCOMP_SET_FILTER = 1
SECCOMP_SYNC_THREADS = 1

# A thread shares memory and thread group with its creator; anything else is a new process.
_CLONE_THREAD_FLAGS = 0x00000100 | 0x00010000  # CLONE_VM | CLONE_THREAD
# NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET
_CLONE_NAMESPACE_FLAGS = 0x7E020000

_AF_UNIX = 1
# AF_INET, AF_INET6, AF_NETLINK (which names the interfaces). Never AF_VSOCK: no network namespace
# keeps its sockets in.
_TALK_FAMILIES = (_AF_UNIX, 2, 10, 16)
_SOCK_STREAM = 1
_SOCK_SEQPACKET = 5
_SOCK_FLAGS = 0x800 | 0x80000  # SOCK_NONBLOCK | SOCK_CLOEXEC
_PRIO_PROCESS = 0

# DUPFD, GETFD, SETFD, GETFL, DUPFD_CLOEXEC. The others would signal another process (SETOWN,
# SETOWN_EX, SETSIG, NOTIFY), make the node wait for us when it opens a file of ours (SETLEASE and
# the locks), or grow kernel buffers that no limit of ours counts (SETPIPE_SZ).
_FCNTL_COMMANDS = (0, 1, 2, 3, 1030)
# GETLK, SETLK, SETLKW for the cache of compiled kernels; ADD_SEALS and GET_SEALS for memfds.
_GPU_FCNTL_COMMANDS = (5, 6, 7, 1033, 1034)
_F_SETFL = 4
# With it the kernel sends a signal to a descriptor's owner on input.
_O_ASYNC = 0x2000

# TCGETS, TIOCGWINSZ, FIONREAD, FIONBIO, FIONCLEX, FIOCLEX: what Python asks of files and terminals.
# Not among them: FIOASYNC, FIOSETOWN, SIOCSPGRP, which signal another process as fcntl does.
_CPU_IOCTLS = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)
# The driver's own requests are too many to list, so with a GPU all pass but those of two groups,
# by the byte that names the group: terminals and files (TIOCSTI, FIOASYNC), and sockets.
_IOCTL_GROUP = 0xFF00
_FORBIDDEN_IOCTL_GROUPS = (0x5400, 0x8900)

# GET_PDEATHSIG, GET and SET_DUMPABLE, SET and GET_NAME, SET and GET_NO_NEW_PRIVS, and the naming of
# anonymous maps. SET_PDEATHSIG is missing: without namespaces it is what ties us to the node.
_PRCTL_OPTIONS = (2, 3, 4, 15, 16, 38, 39, 0x53564D41)


class UnsupportedArchitecture(Exception):
    """No filter exists for this machine, so nothing may be run that would need one."""


@dataclass(frozen=True, slots=True)
class _Check:
    """`number` is allowed if each argument named by its index, masked, is one of the values."""

    number: int
    arguments: tuple["_Argument", ...]


@dataclass(frozen=True, slots=True)
class _Argument:
    index: int
    values: tuple[int, ...]
    mask: int | None = None
    is_high_half: bool = False


# Packets in order, to one peer: a socket of datagrams would hear from every process of the host.
_GPU_CHECKS = (
    _Check(
        _SOCKET,
        (
            _Argument(0, (_AF_UNIX,)),
            _Argument(1, (_SOCK_SEQPACKET,), mask=0xFFFFFFFF ^ _SOCK_FLAGS),
        ),
    ),
)


_TALK_CHECKS = (
    _Check(_SOCKET, (_Argument(0, _TALK_FAMILIES),)),
    _Check(_SOCKETPAIR, (_Argument(0, (_AF_UNIX,)),)),
)

# A process or a thread of whichever kind, but in no namespace of its own.
_START_CHECKS = (
    _Check(_CLONE, (_Argument(0, (0,), mask=_CLONE_NAMESPACE_FLAGS),)),
    _Check(SECCOMP, (_Argument(0, (SECCOMP_SET_FILTER,)), _Argument(1, (SECCOMP_SYNC_THREADS,)))),
)


def is_supported() -> bool:
    """True if this machine's system calls are the ones listed here."""
    return platform.machine() == "x86_64" and struct.calcsize("P") == 8


def build_filter(
    *,
    gpu: bool = False,
    own_pid: int | None = None,
    also: tuple[int, ...] = (),
    starts: bool = False,
    talks: bool = False,
) -> bytes:
    """The program as an array of `struct sock_filter`, ready for bwrap or prctl.

    With `own_pid` signals reach that process only; leave it out inside a pid namespace, which
    already bounds them. `also` are calls to allow with any arguments, for trials of what a driver
    needs. A program that `starts` may run others, and bind itself to a narrower filter; one that
    `talks` may use sockets, which only a network namespace keeps in. Raises
    UnsupportedArchitecture.
    """
    if not is_supported():
        raise UnsupportedArchitecture(
            f"the system-call filter knows x86-64 only, and this machine is {platform.machine()}: "
            "isolation is unsupported here"
        )
    program = _prologue()
    checks = {check.number: check for check in _argument_checks(own_pid)}
    for wider, is_wanted in ((_GPU_CHECKS, gpu), (_TALK_CHECKS, talks), (_START_CHECKS, starts)):
        checks |= {check.number: check for check in wider if is_wanted}
    allowed = _CALLS | (_GPU_CALLS if gpu else {})
    allowed = allowed | (_TALK_CALLS if talks else {}) | (_START_CALLS if starts else {})
    for number, check in checks.items():
        if number not in also and number not in allowed.values():
            program += _allow_if(check)
    program += _fcntl_rule(gpu or starts) + _ioctl_rule(gpu)
    if own_pid is None:
        allowed = allowed | {"kill": _KILL, "tgkill": _TGKILL}
    for number in sorted({*allowed.values(), *also}):
        program += _jump(_JUMP_EQUAL, number, if_true=0, if_false=1) + _return(_ALLOW)
    # glibc falls back to clone, whose flags can be checked, when clone3 does not exist.
    program += _jump(_JUMP_EQUAL, _CLONE3, if_true=0, if_false=1)
    program += _return(_FAIL | errno.ENOSYS)
    return program + _return(_FAIL | errno.EPERM)


def _argument_checks(own_pid: int | None) -> list[_Check]:
    only_self = (_Argument(0, (0,)),)  # Pid 0 is the caller itself.
    checks = [
        # Datagrams name their receiver, so that a pair of them reaches every socket of the host
        # that the file system or the abstract names show; a stream reaches its other end only.
        _Check(
            _SOCKETPAIR,
            (
                _Argument(0, (_AF_UNIX,)),
                _Argument(1, (_SOCK_STREAM,), mask=0xFFFFFFFF ^ _SOCK_FLAGS),
            ),
        ),
        # Without an address. sendmsg, which hides it behind a pointer as it does descriptors, is
        # refused.
        _Check(_SENDTO, (_Argument(4, (0,)), _Argument(4, (0,), is_high_half=True))),
        _Check(_PRCTL, (_Argument(0, _PRCTL_OPTIONS),)),
        _Check(_PRLIMIT64, only_self),
        _Check(_SCHED_SETAFFINITY, only_self),
        # Downwards: RLIMIT_NICE keeps a thread from taking back what it gave up.
        _Check(_SETPRIORITY, (_Argument(0, (_PRIO_PROCESS,)), _Argument(1, (0,)))),
        _Check(
            _CLONE,
            (
                _Argument(
                    0,
                    (_CLONE_THREAD_FLAGS,),
                    mask=_CLONE_THREAD_FLAGS | _CLONE_NAMESPACE_FLAGS,
                ),
            ),
        ),
    ]
    if own_pid is not None:
        checks += [_Check(number, (_Argument(0, (own_pid,)),)) for number in (_KILL, _TGKILL)]
    return checks


def _fcntl_rule(gpu: bool) -> bytes:
    commands = _FCNTL_COMMANDS + (_GPU_FCNTL_COMMANDS if gpu else ())
    set_flags = _require(_Argument(2, (0,), mask=_O_ASYNC)) + _return(_ALLOW)
    return _for_call(
        _FCNTL,
        _load_argument(1)
        + b"".join(_return_if(command, _ALLOW) for command in commands)
        + _jump(_JUMP_EQUAL, _F_SETFL, if_true=0, if_false=len(set_flags) // 8)
        + set_flags
        + _return(_FAIL | errno.EPERM),
    )


def _ioctl_rule(gpu: bool) -> bytes:
    body = _load_argument(1)
    body += b"".join(_return_if(request, _ALLOW) for request in _CPU_IOCTLS)
    if gpu:
        body += _instruction(_AND, _IOCTL_GROUP)
        for group in _FORBIDDEN_IOCTL_GROUPS:
            body += _return_if(group, _FAIL | errno.EPERM)
    return _for_call(_IOCTL, body + _return(_ALLOW if gpu else _FAIL | errno.EPERM))


def _allow_if(check: _Check) -> bytes:
    return _for_call(check.number, b"".join(map(_require, check.arguments)) + _return(_ALLOW))


def _require(argument: _Argument) -> bytes:
    """Go on if the argument has one of its values, refuse the call else."""
    body = _load_argument(argument.index, is_high_half=argument.is_high_half)
    if argument.mask is not None:
        body += _instruction(_AND, argument.mask)
    for left, value in zip(range(len(argument.values) - 1, -1, -1), argument.values, strict=True):
        # Over the comparisons that are left, and the refusal behind them.
        body += _jump(_JUMP_EQUAL, value & 0xFFFFFFFF, if_true=left + 1, if_false=0)
    return body + _return(_FAIL | errno.EPERM)


def _return_if(value: int, action: int) -> bytes:
    return _jump(_JUMP_EQUAL, value, if_true=0, if_false=1) + _return(action)


def _for_call(number: int, body: bytes) -> bytes:
    """Run `body`, which always returns, for this call; skip it, with the number loaded, else."""
    return _jump(_JUMP_EQUAL, number, if_true=0, if_false=len(body) // 8) + body


def _prologue() -> bytes:
    return (
        _instruction(_LOAD, _ARCHITECTURE_AT)
        + _jump(_JUMP_EQUAL, _AUDIT_ARCH_X86_64, if_true=1, if_false=0)
        + _return(_KILL_PROCESS)
        + _instruction(_LOAD, _NUMBER_AT)
        + _jump(_JUMP_AT_LEAST, _X32_BIT, if_true=0, if_false=1)
        + _return(_KILL_PROCESS)
    )


def _load_argument(index: int, *, is_high_half: bool = False) -> bytes:
    return _instruction(_LOAD, _ARGUMENTS_AT + 8 * index + (4 if is_high_half else 0))


def _return(action: int) -> bytes:
    return _instruction(_RETURN, action)


def _jump(opcode: int, operand: int, *, if_true: int, if_false: int) -> bytes:
    return _instruction(opcode, operand, if_true, if_false)


def _instruction(opcode: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", opcode, if_true, if_false, operand)
