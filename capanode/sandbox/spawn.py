"""Start a program in a sandbox: `Sandbox.spawn` in the node, for the worker and the self-test.

Blocks for a few milliseconds. Call it from a thread that lives as long as the node (trio's own):
the kernel sends the parent-death signal when the *thread* that started a process ends.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import capanode
from capanode.sandbox.bwrap import World, bwrap_options
from capanode.sandbox.errors import SandboxError
from capanode.sandbox.gpu import GpuGrant
from capanode.sandbox.host_folder import make_host_folder
from capanode.sandbox.launch import FileRules, Launch
from capanode.sandbox.limits import Limits, tasks_of_user
from capanode.sandbox.opening import SandboxOpening
from capanode.sandbox.privileges import WORKER_USER_ID
from capanode.sandbox.seccomp import UnsupportedArchitecture, build_filter
from capanode.sandbox.toolchain import SEARCH_PATH, toolchain
from capanode.sandbox.view import (
    MODEL_TARGET,
    READABLE_DEVICES,
    READABLE_PROC,
    SCRATCH_TARGET,
    View,
    own_packages,
    plan_view,
)
from protocol.messages import IsolationTier

# What fits into the channel unread. 4 MiB move a 10 MB payload at 5 GB/s, twice as fast as the
# default. A worker gets less: what it said before it heard a command is read before what follows.
TO_WORKER_BUFFER_BYTES = 4 * 1024 * 1024
FROM_WORKER_BUFFER_BYTES = 512 * 1024
_SO_SNDBUFFORCE = 32

# The only settings that pass from the node's environment choose a BLAS kernel: wrong ones compute
# wrong results on some processors.
_INHERITED_SETTINGS = ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE")
# A worker without a GPU sees none, whatever its libraries look for.
_NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}


@dataclass(frozen=True, slots=True)
class Program:
    """A Python module to run confined. It finds its channel, model, scratch and limits in the
    environment (`capanode.sandbox.inside`)."""

    module: str
    limits: Limits
    arguments: tuple[str, ...] = ()
    model_dir: Path | None = None
    packages: tuple[Path, ...] = field(default_factory=own_packages)
    threads: int = 1
    gpu: GpuGrant | None = None
    # How open its sandbox is until it closes it itself (`capanode.sandbox.last_lock`).
    opening: SandboxOpening = SandboxOpening.CLOSED
    # For trials of what a driver needs: takes the place of the system-call filter.
    trial_filter: bytes = b""


@dataclass(slots=True)
class SandboxedProcess:
    """A started program: `channel` is the one way to talk to it, `stderr_fd` what it prints.

    The one who spawned it kills it, waits for it and closes this."""

    popen: subprocess.Popen[bytes]
    channel: socket.socket
    stderr_fd: int
    info_fd: int | None
    host_dir: Path | None
    _program_pid: int | None = None

    def find_program_pid(self) -> int | None:
        """The host's pid of the program itself, which bwrap starts below it; None if it has not got
        that far, or failed before."""
        if self.info_fd is None:
            return self.popen.pid
        if self._program_pid is None:
            with contextlib.suppress(OSError, ValueError):
                self._program_pid = int(json.loads(os.read(self.info_fd, 4096))["child-pid"])
        return self._program_pid

    def kill(self) -> None:
        """Kill the whole sandbox: everything in it dies with its topmost process."""
        self.popen.kill()

    def close(self) -> None:
        """Release what the node holds, after the process was waited for."""
        self.channel.close()
        for descriptor in (self.stderr_fd, self.info_fd):
            if descriptor is not None:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
        if self.host_dir is not None:
            shutil.rmtree(self.host_dir, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Sandbox:
    """One way to confine that the self-test has proven on this machine (see `probe`)."""

    tier: IsolationTier
    bwrap: Path | None = None

    def spawn(self, program: Program) -> SandboxedProcess:
        """Start it. Raises SandboxError; that it came up is for its first message to show."""
        if program.opening is not SandboxOpening.CLOSED and self.tier is not IsolationTier.BWRAP:
            raise SandboxError(
                "this model's engine starts programs of its own, which only bubblewrap confines: "
                "`capanode doctor` says what keeps it from working here"
            )
        view = plan_view(program.packages, program.model_dir)
        with contextlib.ExitStack() as on_failure, contextlib.ExitStack() as after_start:
            ours, theirs = _channel_pair()
            on_failure.callback(ours.close)
            after_start.callback(theirs.close)
            stderr_fd, stderr_write_fd = os.pipe()
            on_failure.callback(os.close, stderr_fd)
            after_start.callback(os.close, stderr_write_fd)
            start = _Start(program, view, theirs.fileno(), on_failure, after_start)
            try:
                if self.tier is IsolationTier.BWRAP and self.bwrap is not None:
                    command = start.with_bwrap(self.bwrap)
                elif self.tier is IsolationTier.LANDLOCK:
                    command = start.with_landlock()
                else:
                    raise SandboxError("no isolation works here: `capanode doctor` says why")
                popen = subprocess.Popen(  # noqa: S603 - paths of ours
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=stderr_write_fd,
                    stderr=stderr_write_fd,
                    pass_fds=(theirs.fileno(), *start.inherited),
                    cwd="/",
                    env={},
                    # Out of reach of the terminal: Ctrl-C is the node's to handle.
                    start_new_session=True,
                )
            except (OSError, UnsupportedArchitecture) as error:
                raise SandboxError(f"the sandbox could not be started: {error}") from error
            on_failure.pop_all()
        return SandboxedProcess(popen, ours, stderr_fd, start.info_fd, start.host_dir)


@dataclass(slots=True)
class _Start:
    """The pieces of one start that both tiers need, and what is to be closed when."""

    program: Program
    view: View
    channel_fd: int
    on_failure: contextlib.ExitStack
    after_start: contextlib.ExitStack
    inherited: list[int] = field(default_factory=list)
    info_fd: int | None = None
    host_dir: Path | None = None

    def with_bwrap(self, bwrap: Path) -> list[str]:
        self.info_fd, info_write_fd = os.pipe()
        os.set_blocking(self.info_fd, False)
        self.on_failure.callback(os.close, self.info_fd)
        self.after_start.callback(os.close, info_write_fd)
        self.inherited.append(info_write_fd)
        program = self.program
        is_open = program.opening is not SandboxOpening.CLOSED
        own_filter = build_filter(gpu=program.gpu is not None, starts=is_open, talks=is_open)
        world = World(
            view=self.view,
            limits=program.limits,
            environment=self._environment(MODEL_TARGET, SCRATCH_TARGET, self.view.search_path),
            gpu=program.gpu,
            filter_fd=self._inherit(program.trial_filter or own_filter),
            info_fd=info_write_fd,
            tools=toolchain() if is_open else (),
        )
        options_fd = self._inherit("".join(f"{word}\0" for word in bwrap_options(world)).encode())
        command = (str(bwrap), "--args", str(options_fd), "--", *self._python_command())
        if os.geteuid() != 0:
            return list(command)
        return self._launcher(
            Launch(
                parent_pid=os.getpid(),
                user_id=WORKER_USER_ID,
                reachable=(*self._sources(), str(bwrap.resolve())),
                file_rules=None,
                working_dir="/",
                command=command,
                environment={},
            )
        )

    def with_landlock(self) -> list[str]:
        is_root = os.geteuid() == 0
        user_id = WORKER_USER_ID if is_root else os.geteuid()
        folder = make_host_folder(
            (package.source for package in self.view.packages), user_id if is_root else None
        )
        self.host_dir = folder.root
        self.on_failure.callback(shutil.rmtree, folder.root, ignore_errors=True)
        code_dir, scratch_dir = folder.code_dir, folder.scratch_dir
        limits = self.program.limits
        processes_max = limits.processes_max + tasks_of_user(user_id)
        self.program = replace(self.program, limits=replace(limits, processes_max=processes_max))
        model = str(self.program.model_dir.resolve()) if self.program.model_dir else ""
        rules = self._file_rules(str(code_dir), str(scratch_dir))
        search_path = (str(code_dir), *(site.source for site in self.view.sites))
        return self._launcher(
            Launch(
                parent_pid=os.getpid(),
                user_id=user_id if is_root else None,
                reachable=(*self._sources(), str(code_dir)),
                file_rules=rules,
                working_dir=str(scratch_dir),
                command=tuple(self._python_command()),
                environment=self._environment(model, str(scratch_dir), search_path),
            )
        )

    def _sources(self) -> tuple[str, ...]:
        libraries = () if self.program.gpu is None else self.program.gpu.libraries
        return (*self.view.sources, *(mount.source for mount in libraries))

    def _file_rules(self, code_dir: str, scratch_dir: str) -> FileRules:
        readable = (*self.view.sources, code_dir, *READABLE_PROC, *READABLE_DEVICES)
        devices: tuple[str, ...] = ("/dev/null",)
        grant = self.program.gpu
        if grant is not None:
            readable = (*readable, "/proc/self", *grant.sources)
            devices += tuple(device.source for device in grant.devices)
        trial = self.program.trial_filter.hex()
        return FileRules(readable, (scratch_dir,), devices, grant is not None, trial)

    def _launcher(self, plan: Launch) -> list[str]:
        plan_fd = self._inherit(plan.to_json().encode())
        root = str(Path(capanode.__file__ or "").parent.parent)
        # Isolated and without site: nothing but the standard library and our own code runs here.
        code = (
            f"import sys; sys.path.append({root!r}); import capanode.sandbox.launch as l; l.main()"
        )
        return [sys.executable, "-I", "-S", "-B", "-c", code, str(plan_fd)]

    def _inherit(self, content: bytes) -> int:
        """A descriptor that the child reads `content` from."""
        descriptor = os.memfd_create("capanode-sandbox")
        self.after_start.callback(os.close, descriptor)
        os.write(descriptor, content)
        os.lseek(descriptor, 0, os.SEEK_SET)
        self.inherited.append(descriptor)
        return descriptor

    def _python_command(self) -> list[str]:
        return [
            *(self.view.python, "-s", "-P", "-B"),
            *("-m", self.program.module, *self.program.arguments),
        ]

    def _environment(
        self, model: str, scratch: str, search_path: tuple[str, ...]
    ) -> Mapping[str, str]:
        threads = str(self.program.threads)
        inherited = {name: os.environ[name] for name in _INHERITED_SETTINGS if name in os.environ}
        gpu = _NO_GPU if self.program.gpu is None else self.program.gpu.environment
        return {
            **inherited,
            **gpu,
            "CUDA_CACHE_PATH": f"{scratch}/kernels",
            "PATH": "/nonexistent"
            if self.program.opening is SandboxOpening.CLOSED
            else SEARCH_PATH,
            "HOME": scratch,
            "TMPDIR": scratch,
            "USER": "worker",
            "LANG": "C.UTF-8",
            "PYTHONPATH": ":".join(search_path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HF_HUB_OFFLINE": "1",
            "TRANSFORMERS_OFFLINE": "1",
            "TORCHINDUCTOR_CACHE_DIR": f"{scratch}/inductor",
            # Libraries that start a thread per core at import would run into the thread limit.
            "OMP_NUM_THREADS": threads,
            # Threads that spin while they wait for each other take the core from the one that they
            # wait for, on a machine that does anything else: measured 4 to 7 times slower.
            "OMP_WAIT_POLICY": "PASSIVE",
            "OPENBLAS_NUM_THREADS": threads,
            "RAYON_NUM_THREADS": threads,
            "TOKENIZERS_PARALLELISM": "false",
            "CAPANODE_CHANNEL_FD": str(self.channel_fd),
            "CAPANODE_MODEL_DIR": model,
            "CAPANODE_SCRATCH_DIR": scratch,
            "CAPANODE_LIMITS": json.dumps(asdict(self.program.limits)),
            "CAPANODE_OPENING": self.program.opening,
        }


def _channel_pair() -> tuple[socket.socket, socket.socket]:
    """The node's end and the worker's."""
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end, size in zip(ends, (TO_WORKER_BUFFER_BYTES, FROM_WORKER_BUFFER_BYTES), strict=True):
        try:
            end.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
        except PermissionError:
            # Not root: as much as the system lets users have.
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
    return ends
