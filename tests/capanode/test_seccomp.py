"""The filter is run here by a small interpreter of classic BPF, so that every rule is seen."""

import errno
import struct
from itertools import pairwise

import pytest

from capanode.sandbox import seccomp
from capanode.sandbox.seccomp import UnsupportedArchitecture, build_filter

X86_64 = 0xC000003E
I386 = 0x40000003
ALLOWED = "allowed"
KILLED = "killed"

pytestmark = pytest.mark.skipif(not seccomp.is_supported(), reason="the filter is for x86-64")


def decide(program: bytes, number: int, *arguments: int, architecture: int = X86_64) -> str | int:
    """What the kernel would do with a call: allow it, kill the process, or the errno it gives."""
    filled = [*arguments, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("<IIQ6Q", number, architecture, 0, *(a & (2**64 - 1) for a in filled))
    instructions = list(struct.iter_unpack("<HBBI", program))
    at = accumulator = 0
    for _ in range(len(instructions) + 1):
        opcode, if_true, if_false, operand = instructions[at]
        at += 1
        if opcode == 0x20:
            accumulator = struct.unpack_from("<I", data, operand)[0]
        elif opcode == 0x54:
            accumulator &= operand
        elif opcode == 0x15:
            at += if_true if accumulator == operand else if_false
        elif opcode == 0x35:
            at += if_true if accumulator >= operand else if_false
        elif opcode == 0x06:
            return _action(operand)
        else:
            raise AssertionError(f"unknown instruction {opcode:#x}")
    raise AssertionError("the program does not end")


def _action(value: int) -> str | int:
    if value == 0x80000000:
        return KILLED
    if value == 0x7FFF0000:
        return ALLOWED
    assert value & 0xFFFF0000 == 0x00050000
    return value & 0xFFFF


CPU = build_filter() if seccomp.is_supported() else b""
GPU = build_filter(gpu=True) if seccomp.is_supported() else b""
ALONE = build_filter(own_pid=4_321) if seccomp.is_supported() else b""


@pytest.mark.parametrize("number", [0, 1, 9, 47, 59, 202, 257, 332, 449])
def test_everyday_calls_are_allowed(number: int) -> None:
    assert decide(CPU, number) == ALLOWED


@pytest.mark.parametrize(
    "number",
    [41, 42, 49, 57, 58, 90, 91, 101, 135, 155, 161, 165, 246, 250, 272, 298, 304, 308, 310, 319,
     321, 322, 323, 425, 428, 434, 438, 9_999],
)  # fmt: skip
def test_unlisted_calls_are_refused(number: int) -> None:
    assert decide(CPU, number) == errno.EPERM


@pytest.mark.parametrize(
    ("number", "architecture"), [(20, I386), (0, I386), (0x40000000, X86_64), (0x40000027, X86_64)]
)
def test_foreign_architectures_are_killed(number: int, architecture: int) -> None:
    assert decide(CPU, number, architecture=architecture) == KILLED


@pytest.mark.parametrize(
    ("flags", "outcome"),
    [
        (0x3D0F00, ALLOWED),  # What glibc starts a thread with.
        (17, errno.EPERM),  # fork: SIGCHLD and nothing else.
        (0x4111, errno.EPERM),  # vfork: CLONE_VM and CLONE_VFORK.
        (0x3D0F00 | 0x10000000, errno.EPERM),  # A thread in a new user namespace.
        (0x3D0F00 | 0x00020000, errno.EPERM),
        (0x3D0F00 | 0x40000000, errno.EPERM),
        (0x00010000, errno.EPERM),  # CLONE_THREAD without CLONE_VM.
    ],
)
def test_clone_makes_threads_only(flags: int, outcome: str | int) -> None:
    assert decide(CPU, 56, flags) == outcome


def test_clone3_is_said_not_to_exist() -> None:
    assert decide(CPU, 435) == errno.ENOSYS


@pytest.mark.parametrize(
    ("number", "arguments", "outcome"),
    [
        (53, (1,), ALLOWED),  # socketpair of AF_UNIX
        (53, (16,), errno.EPERM),
        (302, (0, 7), ALLOWED),  # prlimit64 on oneself
        (302, (1, 7), errno.EPERM),
        (203, (0,), ALLOWED),  # sched_setaffinity
        (203, (77,), errno.EPERM),
        (157, (15,), ALLOWED),  # prctl: PR_SET_NAME
        (157, (1,), errno.EPERM),  # PR_SET_PDEATHSIG
        (157, (22,), errno.EPERM),  # PR_SET_SECCOMP
        (157, (0x53564D41,), ALLOWED),
        (16, (0, 0x5401), ALLOWED),  # ioctl: TCGETS
        (16, (0, 0x5412), errno.EPERM),  # TIOCSTI
        (16, (0, 0xC0FF), errno.EPERM),
    ],
)
def test_arguments_decide(number: int, arguments: tuple[int, ...], outcome: str | int) -> None:
    assert decide(CPU, number, *arguments) == outcome


def test_only_the_low_half_of_an_argument_counts() -> None:
    # As for the kernel itself: the upper half of an int argument is ignored by both.
    assert decide(CPU, 302, 1 << 32) == ALLOWED
    assert decide(CPU, 56, 0x3D0F00 | 1 << 40) == ALLOWED


def test_gpu_mode_allows_what_the_driver_needs() -> None:
    assert decide(GPU, 16, 0, 0xC0FF) == ALLOWED
    assert decide(GPU, 16, 0, 0x5412) == errno.EPERM
    assert decide(GPU, 319) == decide(GPU, 149) == ALLOWED
    assert decide(GPU, 41) == errno.EPERM


def test_signals_are_bound_to_oneself_where_no_namespace_does_it() -> None:
    assert decide(CPU, 62, 99) == decide(CPU, 234, 99) == ALLOWED
    assert decide(ALONE, 62, 4_321) == decide(ALONE, 234, 4_321) == ALLOWED
    assert decide(ALONE, 62, 1) == decide(ALONE, 234, 1) == errno.EPERM


@pytest.mark.parametrize("program", [CPU, GPU, ALONE])
def test_program_is_well_formed(program: bytes) -> None:
    instructions = list(struct.iter_unpack("<HBBI", program))
    assert len(instructions) < 4_096
    for at, (opcode, if_true, if_false, _) in enumerate(instructions):
        if opcode & 0x07 == 0x05:
            assert at + 1 + max(if_true, if_false) < len(instructions)
    assert instructions[-1][0] == 0x06
    assert all(left != right or left[0] != 0x06 for left, right in pairwise(instructions))


def test_other_processors_are_refused_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(UnsupportedArchitecture, match="aarch64: isolation is unsupported here"):
        build_filter()
