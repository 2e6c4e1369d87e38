"""The start-up self-test: which isolation tier really works on this machine, shown by running a
program that tries to break out, and looking at it from outside.

Reads no configuration and trusts no version string; a tier counts only if every attempt failed.
"""

import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from capanode.sandbox.bwrap import bwrap_candidates
from capanode.sandbox.cures import cure_of, read_host
from capanode.sandbox.errors import SandboxError
from capanode.sandbox.gpu import GpuDevice, GpuGrant, plan_grant
from capanode.sandbox.landlock import VERSION_MIN, landlock_version
from capanode.sandbox.limits import GPU_FILES_MAX, Limits
from capanode.sandbox.seccomp import is_supported
from capanode.sandbox.selftest import START_CUDA
from capanode.sandbox.spawn import Program, Sandbox, SandboxedProcess
from protocol.messages import IsolationTier

# A trivial program is up in about 0.1 s; a loaded machine may take much longer.
PROBE_TIMEOUT_S = 20.0
_REPORT_BYTES_MAX = 64 * 1024
_STDERR_BYTES_MAX = 2_000
_MIB = 1024 * 1024

# CUDA's driver passes anonymous files to itself, locks its cache of compiled kernels, and reads its
# own memory map, beside which the kernel puts the mount table.
_DRIVERS_NEEDS = frozenset({"make an anonymous file", "lock a file", "read the mount table"})

# Enough for a bare Python, which is all that the self-test is.
_PROBE_LIMITS = Limits(memory_bytes=512 * _MIB, address_space_bytes=1024 * _MIB)
_GPU_PROBE_LIMITS = replace(_PROBE_LIMITS, address_space_bytes=None, files_max=GPU_FILES_MAX)


@dataclass(frozen=True, slots=True)
class Fact:
    """One thing that was tried, and how it ended."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True, slots=True)
class GpuTrial:
    """How CUDA's driver started in the sandbox that was found: `problem` is what the self-test met,
    empty if it works. `whole_sys` is True if the driver needs to see every device of the kernel."""

    problem: str
    whole_sys: bool = False


@dataclass(frozen=True, slots=True)
class IsolationReport:
    """The best tier that held. `facts` are of that tier, or of the failures where none did;
    `advice` says what would make it better."""

    tier: IsolationTier
    facts: tuple[Fact, ...]
    advice: tuple[str, ...]
    # None: this machine cannot confine other people's jobs.
    sandbox: Sandbox | None
    # None where no GPU was asked for.
    gpu: GpuTrial | None = None


def probe_isolation(devices: Sequence[GpuDevice] = ()) -> IsolationReport:
    """Try every way to confine a program, strongest first, with these devices as well as without.

    A tier in which their driver does not start is taken only if it starts in none. Blocks for some
    tenths of a second, and for as long as the driver takes to start.
    """
    if sys.platform != "linux" or not is_supported():
        return _report_nothing(
            (Fact("platform", False, "only Linux on x86-64 is supported"),),
            ("run the node on Linux on x86-64; elsewhere it cannot confine other people's jobs",),
        )
    failures: list[Fact] = []
    without_gpu: IsolationReport | None = None
    for sandbox in _candidates():
        facts = probe_sandbox(sandbox)
        gpu: GpuTrial | None = None
        if devices and all(fact.ok for fact in facts):
            gpu, more = _try_driver(sandbox, devices)
            facts += more
        if all(fact.ok for fact in facts):
            report = IsolationReport(sandbox.tier, facts, _advice(sandbox.tier), sandbox, gpu)
            if gpu is None or not gpu.problem:
                return report
            without_gpu = without_gpu or report
        failures += [
            replace(fact, name=f"{_title(sandbox)}: {fact.name}") for fact in facts if not fact.ok
        ]
    return without_gpu or _report_nothing(tuple(failures), _advice(IsolationTier.NONE))


def _try_driver(
    sandbox: Sandbox, devices: Sequence[GpuDevice]
) -> tuple[GpuTrial, tuple[Fact, ...]]:
    """The whole self-test as a worker with a GPU runs, first with the little of /sys that should
    do. That the driver starts is no fact of isolation."""
    trial = GpuTrial("")
    facts: tuple[Fact, ...] = ()
    for whole_sys in (False, True):
        found = probe_sandbox(sandbox, gpu=plan_grant(devices, whole_sys=whole_sys))
        facts = tuple(
            replace(fact, name=f"with the GPU: {fact.name}")
            for fact in found
            if fact.name != START_CUDA
        )
        started = next((fact for fact in found if fact.name == START_CUDA), None)
        problem = "" if started is None or started.ok else started.detail
        if not problem:
            return GpuTrial("", whole_sys), facts
        trial = trial if trial.problem else GpuTrial(problem)
    return trial, facts


def _advice(tier: IsolationTier) -> tuple[str, ...]:
    """What the operator can do to reach a better tier."""
    advice = []
    if tier is not IsolationTier.BWRAP:
        advice.append(cure_of(read_host()) if bwrap_candidates() else _ADVICE_BWRAP)
    if tier is IsolationTier.NONE:
        if landlock_version() < VERSION_MIN:
            advice.append(f"Linux 6.2 or newer has Landlock {VERSION_MIN}, the fallback")
        advice.append("until then this node refuses remote jobs")
    return tuple(advice)


_ADVICE_BWRAP = "install bubblewrap 0.8 or newer (Debian, Fedora, Arch: `bubblewrap`)"


def _report_nothing(facts: tuple[Fact, ...], advice: tuple[str, ...]) -> IsolationReport:
    return IsolationReport(IsolationTier.NONE, facts, advice, None)


def _candidates() -> Iterator[Sandbox]:
    for path in bwrap_candidates():
        yield Sandbox(IsolationTier.BWRAP, path)
    if landlock_version() >= VERSION_MIN:
        yield Sandbox(IsolationTier.LANDLOCK)


def _title(sandbox: Sandbox) -> str:
    return sandbox.tier if sandbox.bwrap is None else f"{sandbox.tier} ({sandbox.bwrap})"


def probe_sandbox(sandbox: Sandbox, *, gpu: GpuGrant | None = None) -> tuple[Fact, ...]:
    """Run the self-test in this sandbox; all facts are `ok` only if it held.

    With `gpu` it runs as a worker with a GPU does, starts the driver, and what that needs is no
    attempt.
    """
    with _playground() as (canary, model_dir), _listeners(canary) as listeners:
        program = Program(
            "capanode.sandbox.selftest",
            limits=_PROBE_LIMITS if gpu is None else _GPU_PROBE_LIMITS,
            arguments=(
                *(str(canary), str(_socket_path(canary))),
                *(() if gpu is None else ("gpu",)),
            ),
            model_dir=model_dir,
            gpu=gpu,
        )
        try:
            process = sandbox.spawn(program)
        except SandboxError as error:
            return (Fact("start", False, str(error)),)
        try:
            facts = _examine(process, listeners)
            needed = () if gpu is None else _DRIVERS_NEEDS
            return tuple(fact for fact in facts if fact.name not in needed)
        finally:
            process.kill()
            process.popen.wait()
            process.close()


def _socket_path(canary: Path) -> Path:
    return canary.with_name("socket")


@contextmanager
def _listeners(canary: Path) -> Iterator[tuple[socket.socket, ...]]:
    """Sockets of the host that take datagrams from any process, by path and by abstract name."""
    path = _socket_path(canary)
    with ExitStack() as stack:
        listeners = []
        for name in (str(path), f"\0{path}"):
            listener = stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
            listener.bind(name)
            listener.setblocking(False)
            listeners.append(listener)
        path.chmod(0o777)
        yield tuple(listeners)


def _heard_nothing(listener: socket.socket) -> Fact:
    name = "host's abstract socket" if listener.getsockname()[:1] == b"\0" else "host's socket"
    try:
        listener.recv(1)
    except BlockingIOError:
        return Fact(name, True, "heard nothing")
    return Fact(name, False, "A DATAGRAM ARRIVED")


@contextmanager
def _playground() -> Iterator[tuple[Path, Path]]:
    """A file that every user of the host may read, and a model that every user may write: only the
    sandbox itself stands before them."""
    folder = Path(tempfile.mkdtemp(prefix="capanode-probe-"))
    try:
        folder.chmod(0o755)
        canary, model_dir = folder / "canary", folder / "model"
        model_dir.mkdir()
        model_dir.chmod(0o777)
        for path in (canary, model_dir / "model.txt"):
            path.write_text("x")
            path.chmod(0o666)
        yield canary, model_dir
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _examine(process: SandboxedProcess, listeners: tuple[socket.socket, ...]) -> tuple[Fact, ...]:
    try:
        report = json.loads(_read_report(process.channel))
        attempts = [
            Fact(name, bool(met), f"refused ({met})" if met else "IT WORKED")
            for name, met in report["refused"].items()
        ]
        needs = [Fact(name, not met, met or "works") for name, met in report["works"].items()]
        pid = process.find_program_pid() or 0
        outside = _outside_facts(_read_status(pid), os.getpriority(os.PRIO_PROCESS, pid))
    except (OSError, ValueError, KeyError):
        detail = _read_stderr(process) or "it ended or hung without a word"
        return (Fact("start", False, detail),)
    heard = map(_heard_nothing, listeners)
    return (*attempts, *needs, *outside, *heard)


def _read_report(channel: socket.socket) -> bytes:
    channel.settimeout(PROBE_TIMEOUT_S)
    received = b""
    while not received.endswith(b"\n") and len(received) < _REPORT_BYTES_MAX:
        part = channel.recv(_REPORT_BYTES_MAX)
        if not part:
            break
        received += part
    return received


def _read_status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def _outside_facts(status: dict[str, str], nice: int) -> tuple[Fact, ...]:
    """What the host's kernel says of the process, which the process itself cannot colour."""
    user_ids = status["Uid"].split()
    capabilities = {name: int(status[name], 16) for name in ("CapEff", "CapPrm", "CapAmb")}
    return (
        Fact("not the host's root", "0" not in user_ids, f"host user {user_ids[0]}"),
        Fact("no capabilities", not any(capabilities.values()), status["CapEff"]),
        Fact("system-call filter in force", status["Seccomp"] == "2", status["Seccomp"]),
        Fact("no new privileges", status["NoNewPrivs"] == "1", status["NoNewPrivs"]),
        Fact("stands back for the node", nice >= _PROBE_LIMITS.nice, f"nice {nice}"),
    )


def _read_stderr(process: SandboxedProcess) -> str:
    os.set_blocking(process.stderr_fd, False)
    try:
        text = os.read(process.stderr_fd, _STDERR_BYTES_MAX).decode(errors="replace")
    except BlockingIOError:
        return ""
    return " ".join(text.split())
