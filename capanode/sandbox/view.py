"""What a worker sees of the host: the Python that runs it, the code it runs, one model, and the
system's shared libraries. Everything else does not exist for it.
"""

import sys
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import capanode
import protocol
from capanode.sandbox.errors import SandboxError

MODEL_TARGET = "/model"
SCRATCH_TARGET = "/tmp"  # noqa: S108 - the sandbox's own, empty and private
CODE_TARGET = "/code"
_SITE_TARGET = "/site"

# What a program may read of the host's devices and kernel; not /proc/self, whose mount table names
# host paths. What a GPU's driver reads beside them is in `capanode.sandbox.gpu`.
READABLE_DEVICES = ("/dev/urandom", "/dev/random", "/dev/zero")
READABLE_PROC = ("/proc/cpuinfo", "/proc/meminfo", "/sys/devices/system/cpu")

# A Python that shares its prefix with the rest of the system: binding the whole prefix would show
# every program and file there, so only Python's own parts are bound.
_SHARED_PREFIXES = {Path("/usr"), Path("/usr/local")}

# Where the loader looks without a cache, on Debian, Fedora and Arch alike.
LIBRARY_PATHS = ("/usr/lib/x86_64-linux-gnu", "/usr/lib64", "/lib/x86_64-linux-gnu", "/lib64")


@dataclass(frozen=True, slots=True)
class Mount:
    """A host path, with links resolved, and where the worker finds it; always read-only."""

    source: str
    target: str


@dataclass(frozen=True, slots=True)
class View:
    """All that one worker sees. `links` are (content, path) of symlinks to make."""

    python: str
    mounts: tuple[Mount, ...]
    links: tuple[tuple[str, str], ...]
    # Folders of installed packages, and single packages, which are searched first.
    sites: tuple[Mount, ...]
    packages: tuple[Mount, ...]

    @property
    def search_path(self) -> tuple[str, ...]:
        """Where the worker's Python looks for modules, if the targets are what it sees."""
        return (CODE_TARGET, *(site.target for site in self.sites))

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(mount.source for mount in self.mounts)


def own_packages() -> tuple[Path, ...]:
    """The packages that a worker imports; the coordinator's and the keys' stay outside."""
    return tuple(Path(package.__file__ or "").parent for package in (capanode, protocol))


def plan_view(packages: Iterable[Path], model_dir: Path | None) -> View:
    """The view of a worker that imports `packages` (folders) and reads `model_dir`.

    Raises SandboxError if one of them is not there.
    """
    python = _python_executable()
    library_mounts, links = _libraries()
    mounts = [*library_mounts, *_python_mounts(python)]
    sites = tuple(
        Mount(str(path), f"{_SITE_TARGET}/{index}") for index, path in enumerate(_site_folders())
    )
    code = tuple(_package_mount(path) for path in packages)
    model = () if model_dir is None else (_model_mount(model_dir),)
    return View(
        python=str(python),
        mounts=(*mounts, *sites, *code, *model),
        links=links,
        sites=sites,
        packages=code,
    )


def _python_executable() -> Path:
    """The interpreter itself, not a virtual environment's link to it."""
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    candidate = Path(sys.base_prefix, "bin", version)
    return candidate if candidate.exists() else Path(sys.executable).resolve()


def _python_mounts(python: Path) -> list[Mount]:
    """Python at its own paths: its shared library is found by a path that is built in."""
    prefix = Path(sys.base_prefix)
    if prefix not in _SHARED_PREFIXES and prefix.resolve() not in _SHARED_PREFIXES:
        return [
            Mount(str(prefix.resolve()), str(place)) for place in sorted({prefix, prefix.resolve()})
        ]
    libraries = Path(sysconfig.get_config_var("LIBDIR") or prefix / "lib")
    # By default a virtual environment answers with its own folder for one of the two.
    bases = dict.fromkeys(("base", "installed_base"), sys.base_prefix)
    bases |= dict.fromkeys(("platbase", "installed_platbase"), sys.base_exec_prefix)
    parts = {
        python,
        Path(sysconfig.get_path("stdlib", vars=bases)),
        Path(sysconfig.get_path("platstdlib", vars=bases)),
        libraries / str(sysconfig.get_config_var("INSTSONAME")),
    }
    return [Mount(str(part.resolve()), str(part)) for part in sorted(parts) if part.exists()]


def _libraries() -> tuple[list[Mount], tuple[tuple[str, str], ...]]:
    mounts: list[Mount] = []
    links = [
        (str(path.readlink()), str(path)) for path in map(Path, ("/lib",)) if path.is_symlink()
    ]
    for path in map(Path, LIBRARY_PATHS):
        if path.is_symlink():
            links.append((str(path.readlink()), str(path)))
            mounts.append(Mount(str(path.resolve()), str(path.resolve())))
        elif path.is_dir() and path.resolve() == path:
            mounts.append(Mount(str(path), str(path)))
    return list(dict.fromkeys(mounts)), tuple(links)


def _site_folders() -> list[Path]:
    """Installed packages outside the base prefix (those inside are seen with it)."""
    base = Path(sys.base_prefix).resolve()
    shared = base in _SHARED_PREFIXES
    folders = []
    for entry in sys.path:
        path = Path(entry).resolve()
        is_site = path.name in ("site-packages", "dist-packages") and path.is_dir()
        if is_site and (shared or not path.is_relative_to(base)):
            folders.append(path)
    return folders


def _package_mount(path: Path) -> Mount:
    resolved = path.resolve()
    if not resolved.is_dir():
        raise SandboxError(
            f"the package folder {path} is not there: is the program installed whole?"
        )
    return Mount(str(resolved), f"{CODE_TARGET}/{resolved.name}")


def _model_mount(model_dir: Path) -> Mount:
    resolved = model_dir.resolve()
    if not resolved.is_dir():
        raise SandboxError(
            f"the model folder {model_dir} is not there: pull it with `capanode models pull`"
        )
    return Mount(str(resolved), MODEL_TARGET)
