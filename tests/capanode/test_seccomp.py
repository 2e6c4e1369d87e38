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
# While an engine starts that runs programs of its own, and of several processes that then serve.
OPEN = build_filter(gpu=True, starts=True, talks=True) if seccomp.is_supported() else b""
GROUP = build_filter(gpu=True, talks=True) if seccomp.is_supported() else b""


@pytest.mark.parametrize("number", [0, 1, 9, 45, 59, 202, 257, 332, 449])
def test_everyday_calls_are_allowed(number: int) -> None:
    assert decide(CPU, number) == ALLOWED


@pytest.mark.parametrize(
    "number",
    [41, 42, 46, 47, 49, 54, 57, 58, 73, 90, 91, 101, 135, 155, 161, 165, 246, 250, 272, 298, 304,
     308, 310, 319, 321, 322, 323, 425, 428, 434, 438, 9_999],
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
        (53, (1, 1), ALLOWED),  # socketpair: a stream of AF_UNIX
        (53, (1, 1 | 0x80800), ALLOWED),
        (53, (1, 2), errno.EPERM),  # datagrams
        (53, (1, 5), errno.EPERM),  # sequenced packets
        (53, (1, 2 | 0x80000), errno.EPERM),
        (53, (16, 1), errno.EPERM),
        (44, (3, 0x7F00, 8, 0, 0, 0), ALLOWED),  # sendto without an address
        (44, (3, 0x7F00, 8, 0, 0x7F0000001000, 110), errno.EPERM),
        (44, (3, 0x7F00, 8, 0, 1 << 32, 110), errno.EPERM),  # an address with an empty low half
        (141, (0, 0, 10), ALLOWED),  # setpriority of oneself
        (141, (0, 77, 10), errno.EPERM),
        (141, (2, 0, 10), errno.EPERM),  # of every process of the user
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


@pytest.mark.parametrize("command", [0, 1, 2, 3, 4, 1030])
def test_fcntl_on_ones_own_descriptors_is_allowed(command: int) -> None:
    assert decide(CPU, 72, 3, command, 0) == ALLOWED


@pytest.mark.parametrize(
    ("command", "argument"),
    [
        (8, 77),  # F_SETOWN
        (9, 0),  # F_GETOWN
        (10, 12),  # F_SETSIG
        (15, 0),  # F_SETOWN_EX
        (1024, 0),  # F_SETLEASE
        (1026, 1),  # F_NOTIFY
        (1031, 1 << 20),  # F_SETPIPE_SZ
        (6, 0),  # F_SETLK
        (38, 0),  # F_OFD_SETLKW
        (4, 0x2000),  # F_SETFL with O_ASYNC
        (4, 0x2800),
        (1 << 31, 0),
    ],
)
def test_fcntl_reaches_no_other_process(command: int, argument: int) -> None:
    assert decide(CPU, 72, 3, command, argument) == errno.EPERM
    assert decide(ALONE, 72, 3, command, argument) == errno.EPERM
    if command not in (5, 6, 7):
        assert decide(GPU, 72, 3, command, argument) == errno.EPERM


@pytest.mark.parametrize("request_number", [0x5452, 0x8901, 0x8902, 0x5410, 0x5412, 0x541C, 0x8904])
def test_ioctl_reaches_no_other_process(request_number: int) -> None:
    assert decide(CPU, 16, 3, request_number) == errno.EPERM
    assert decide(GPU, 16, 3, request_number) == errno.EPERM


def test_only_the_low_half_of_an_argument_counts() -> None:
    # As for the kernel itself: the upper half of an int argument is ignored by both.
    assert decide(CPU, 302, 1 << 32) == ALLOWED
    assert decide(CPU, 56, 0x3D0F00 | 1 << 40) == ALLOWED


def test_gpu_mode_allows_what_the_driver_needs() -> None:
    assert decide(GPU, 16, 0, 0xC0FF) == ALLOWED
    assert decide(GPU, 16, 0, 0x30000001) == ALLOWED  # The unified memory driver's first request.
    assert decide(GPU, 16, 0, 0x5401) == ALLOWED
    assert decide(GPU, 319) == decide(GPU, 149) == ALLOWED


@pytest.mark.parametrize(
    ("family", "kind", "outcome"),
    [
        (1, 5, ALLOWED),
        (1, 5 | 0x80800, ALLOWED),
        (1, 1, errno.EPERM),  # a stream
        (1, 2, errno.EPERM),  # datagrams, which any process of the host could send
        (2, 5, errno.EPERM),
        (2, 1, errno.EPERM),
        (16, 5, errno.EPERM),
        (40, 5, errno.EPERM),
    ],
)
def test_with_a_gpu_one_kind_of_socket_is_made(family: int, kind: int, outcome: str | int) -> None:
    assert decide(GPU, 41, family, kind, 0) == outcome
    assert decide(CPU, 41, family, kind, 0) == errno.EPERM


def test_a_socket_of_the_drivers_listens_and_neither_connects_nor_accepts() -> None:
    assert decide(GPU, 49) == decide(GPU, 50) == ALLOWED
    for number in (42, 43, 46, 47, 54, 55, 288):
        assert decide(GPU, number) == errno.EPERM
    assert decide(CPU, 49) == decide(CPU, 50) == errno.EPERM


def test_a_trial_may_allow_more() -> None:
    trial = build_filter(gpu=True, also=(41, 54))
    assert decide(trial, 54) == decide(trial, 41, 2, 1, 0) == ALLOWED
    assert decide(trial, 42) == errno.EPERM


def test_signals_are_bound_to_oneself_where_no_namespace_does_it() -> None:
    assert decide(CPU, 62, 99) == decide(CPU, 234, 99) == ALLOWED
    assert decide(ALONE, 62, 4_321) == decide(ALONE, 234, 4_321) == ALLOWED
    assert decide(ALONE, 62, 1) == decide(ALONE, 234, 1) == errno.EPERM


def test_a_program_that_starts_runs_others_and_narrows_its_filter_until_it_has() -> None:
    for number, *arguments in ((57,), (58,), (56, 17), (56, 0x4111), (112,), (90,)):
        assert decide(OPEN, number, *arguments) == ALLOWED
        assert decide(GPU, number, *arguments) == decide(GROUP, number, *arguments) == errno.EPERM
    # A filter for all threads, and nothing else of that call.
    assert decide(OPEN, 317, 1, 1) == ALLOWED
    for other in ((1, 0), (1, 9), (0, 0), (2, 1), (3, 0)):
        assert decide(OPEN, 317, *other) == errno.EPERM
    assert decide(GPU, 317, 1, 1) == decide(GROUP, 317, 1, 1) == errno.EPERM


@pytest.mark.parametrize("program", [OPEN, GROUP])
def test_processes_that_talk_use_sockets_of_a_network_that_is_their_own(program: bytes) -> None:
    for number in (42, 43, 44, 46, 47, 49, 50, 51, 54, 55, 288):
        assert decide(program, number, 3, 0x7F00, 8, 0, 0x7F0000001000, 16) == ALLOWED
    for family in (1, 2, 10, 16):
        assert decide(program, 41, family, 1, 0) == ALLOWED
    # A network namespace does not keep in what is made of these: vsock, and kernel crypto.
    for family in (40, 38, 17, 31):
        assert decide(program, 41, family, 1, 0) == errno.EPERM


@pytest.mark.parametrize("program", [OPEN, GROUP])
@pytest.mark.parametrize(
    "number", [101, 155, 161, 165, 246, 250, 272, 298, 304, 308, 310, 321, 323, 425, 428, 434, 438]
)
def test_what_breaks_out_is_refused_in_every_phase(program: bytes, number: int) -> None:
    assert decide(program, number) == errno.EPERM
    assert decide(program, 56, 17 | 0x10000000) == errno.EPERM


@pytest.mark.parametrize("program", [CPU, GPU, ALONE, OPEN, GROUP])
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
