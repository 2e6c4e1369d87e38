"""Does CUDA start in the sandbox, and what of the sandbox is in its way: the driver's start under
every combination of confinement and system-call filter, each in a process of its own.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import sim
from capanode.sandbox.bwrap import bwrap_candidates
from capanode.sandbox.errors import SandboxError
from capanode.sandbox.gpu import GpuDevice, plan_grant
from capanode.sandbox.landlock import VERSION_MIN, landlock_version
from capanode.sandbox.launch import Launch
from capanode.sandbox.limits import limits_for_model
from capanode.sandbox.privileges import WORKER_USER_ID
from capanode.sandbox.seccomp import build_filter
from capanode.sandbox.spawn import Program, Sandbox
from capanode.sandbox.view import own_packages
from protocol.messages import IsolationTier

_CHILD = "sim.bench.gpu_child"
_REPOSITORY = Path(sim.__file__ or "").parent.parent
_TIMEOUT_S = 20.0
_LAUNCH = "import capanode.sandbox.launch as launch; launch.main()"
# A process that ended without a word: killed by the filter, or never started.
_ENDED = -2.0

_ALLOW_ALL = b"\x06\x00\x00\x00\x00\x00\xff\x7f"
_SETSOCKOPT = 54
# connect, accept, sendmsg, recvmsg, getsockname, getpeername, getsockopt, accept4, and socket,
# sendto and socketpair of any kind.
_ALL_SOCKET_CALLS = (41, 42, 43, 44, 46, 47, 51, 52, 53, _SETSOCKOPT, 55, 288)


def filters() -> dict[str, bytes]:
    """From none to ours; those between say which call is missed."""
    return {
        "unfiltered": _ALLOW_ALL,
        "all_sockets": build_filter(gpu=True, also=_ALL_SOCKET_CALLS),
        "setsockopt": build_filter(gpu=True, also=(_SETSOCKOPT,)),
        "ours": b"",
    }


def run_child(
    sandbox: Sandbox, program: Program, *, within_s: float = _TIMEOUT_S
) -> dict[str, float]:
    """What the program reports. Raises SandboxError if it ends without a word."""
    process = sandbox.spawn(program)
    try:
        process.channel.settimeout(within_s)
        text = _receive_line(process.channel)
        if not text:
            os.set_blocking(process.stderr_fd, False)
            raise SandboxError(_last_words(process.stderr_fd) or "it ended without a word")
        report: dict[str, float] = json.loads(text)
        return report
    except TimeoutError:
        raise SandboxError(f"it did not answer within {within_s:g} s") from None
    finally:
        process.kill()
        process.popen.wait()
        process.close()


def child_program(*arguments: str, model_dir: Path | None = None, **options: object) -> Program:
    return Program(
        _CHILD,
        limits=limits_for_model(0, gpu=True, nice=0),
        arguments=arguments,
        model_dir=model_dir,
        packages=(*own_packages(), _REPOSITORY / "sim"),
        threads=4,
        **options,  # type: ignore[arg-type]  # fields of Program
    )


def measure_starts(
    devices: tuple[GpuDevice, ...], names: tuple[str, ...]
) -> Iterator[tuple[str, float]]:
    """A driver's number for each combination (0 works), and for ours the descriptors it took."""
    bare = _start_bare(devices)
    yield "start_bare", bare["code"]
    yield "descriptors_bare", bare["descriptors"]
    known = filters()
    for place, sandbox, whole_sys in _places():
        grant = plan_grant(devices, whole_sys=whole_sys)
        for name in names:
            program = child_program("start", "", gpu=grant, trial_filter=known[name])
            try:
                report = run_child(sandbox, program)
            except SandboxError:
                report = {"code": _ENDED, "descriptors": 0.0}
            yield f"start_{place}_{name}", report["code"]
            if name == "ours":
                yield f"starts_{place}", float(report["code"] == 0)
                yield f"descriptors_{place}", report["descriptors"]


def _places() -> Iterator[tuple[str, Sandbox, bool]]:
    for path in bwrap_candidates()[:1]:
        yield "bwrap", Sandbox(IsolationTier.BWRAP, path), False
        yield "bwrap_whole_sys", Sandbox(IsolationTier.BWRAP, path), True
    if landlock_version() >= VERSION_MIN:
        yield "landlock", Sandbox(IsolationTier.LANDLOCK), False


def _start_bare(devices: tuple[GpuDevice, ...]) -> dict[str, float]:
    """The same child unconfined, and never as root."""
    ended = {"code": _ENDED, "descriptors": 0.0}
    ours, theirs = socket.socketpair()
    with ours:
        with theirs, os.fdopen(os.memfd_create("capacloud-bench"), "r+") as plan:
            plan.write(_bare_launch(devices, theirs.fileno()).to_json())
            plan.seek(0)
            process = subprocess.Popen(
                [sys.executable, "-c", _LAUNCH, str(plan.fileno())],
                cwd=_REPOSITORY,
                pass_fds=(theirs.fileno(), plan.fileno()),
                stderr=subprocess.DEVNULL,
            )
        try:
            ours.settimeout(_TIMEOUT_S)
            text = _receive_line(ours)
        except TimeoutError:
            text = b""
        finally:
            process.kill()
            process.wait()
    report: dict[str, float] = json.loads(text) if text else ended
    return report


def _bare_launch(devices: tuple[GpuDevice, ...], channel_fd: int) -> Launch:
    return Launch(
        parent_pid=os.getpid(),
        user_id=WORKER_USER_ID if os.geteuid() == 0 else None,
        reachable=(sys.base_prefix, sys.prefix, str(_REPOSITORY)),
        file_rules=None,
        working_dir="/",
        command=(sys.executable, "-B", "-m", _CHILD, "start", ""),
        environment={
            **plan_grant(devices).environment,
            "PYTHONPATH": str(_REPOSITORY),
            "CAPANODE_CHANNEL_FD": str(channel_fd),
            "CAPANODE_MODEL_DIR": "",
            "CAPANODE_SCRATCH_DIR": "",
            "CAPANODE_LIMITS": json.dumps(asdict(limits_for_model(0, gpu=True, nice=0))),
        },
    )


def _receive_line(channel: socket.socket) -> bytes:
    received = b""
    while not received.endswith(b"\n"):
        part = channel.recv(65_536)
        if not part:
            return b""
        received += part
    return received


def _last_words(stderr_fd: int) -> str:
    try:
        lines = os.read(stderr_fd, 65_536).decode(errors="replace").strip().splitlines()
    except BlockingIOError:
        return ""
    return lines[-1] if lines else ""
