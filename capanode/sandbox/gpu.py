"""What a worker with a GPU gets beyond any other worker: its own card's device files, the driver's
libraries from wherever they are installed, and the few facts of the kernel that the driver reads.

The driver's folders are asked of the loader (its cache, LD_LIBRARY_PATH) and looked for in the
places that containers and WSL use. A card is named by its UUID, so that no order matters.
"""

import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from capanode.sandbox.view import LIBRARY_PATHS, Mount

# Without a cache entry: the container runtime's places, WSL's, and NixOS's.
_KNOWN_FOLDERS = (
    *("/usr/local/nvidia/lib64", "/usr/local/nvidia/lib", "/usr/lib/wsl/lib"),
    *("/run/opengl-driver/lib", "/opt/nvidia/lib64", "/opt/nvidia/lib"),
    *("/usr/lib/nvidia", "/usr/lib64/nvidia", "/usr/local/lib64", "/usr/local/lib"),
)
# Below this, a driver that was unpacked by hand: `/opt/<anything>/lib64/libcuda.so.1`.
_OPTIONAL_PACKAGES = "/opt"
_DRIVER = "libcuda.so.1"
# Of a folder that holds other things too, only these are shown. `libdxcore` and `libd3d12` are what
# WSL's libcuda stands on.
_DRIVER_FILES = re.compile(
    r"lib(cuda|cudadebugger|nvidia-[\w-]+|nvcuvid|dxcore|d3d12\w*)\.so[.\d]*"
)
_LDCONFIG = ("/sbin/ldconfig", "/usr/sbin/ldconfig")
_LDCONFIG_TIMEOUT_S = 5.0

_SHARED_DEVICES = ("/dev/nvidiactl", "/dev/nvidia-uvm", "/dev/nvidia-uvm-tools", "/dev/dxg")
# What the driver reads of the kernel, whichever card it is.
_FACTS = (
    *("/proc/driver/nvidia", "/sys/module/nvidia", "/sys/module/nvidia_uvm"),
    *("/sys/devices/system/cpu", "/sys/devices/system/node"),
    # WSL's driver loads the Windows driver's half from there.
    "/usr/lib/wsl/drivers",
)
_WHOLE_SYS = ("/sys/bus/pci", "/sys/devices")
# The cache of compiled kernels lies in the scratch folder, which is a few times as large.
_KERNEL_CACHE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class GpuDevice:
    """A card, or a MIG instance of one. `uuid` is CUDA's name of it; `minor` is of the card's
    device file, None where there is none (WSL); `capability_minors` are of the files that open an
    instance."""

    uuid: str
    minor: int | None = None
    pci_address: str = ""
    capability_minors: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class GpuGrant:
    """All that one worker gets for its devices. Mounts are read-only; `devices` are device files,
    host path first. `links` are (content, path) of symlinks to make."""

    uuids: tuple[str, ...]
    devices: tuple[Mount, ...]
    libraries: tuple[Mount, ...]
    facts: tuple[Mount, ...]
    links: tuple[tuple[str, str], ...]

    @property
    def sources(self) -> tuple[str, ...]:
        """Host paths that are read, device files left out."""
        return tuple(mount.source for mount in (*self.libraries, *self.facts))

    @property
    def environment(self) -> Mapping[str, str]:
        """Beside the cards: where the loader finds a driver outside of its own folders. CUDA's
        cache is settled by whom the scratch folder is known to."""
        folders = dict.fromkeys(str(Path(mount.target).parent) for mount in self.libraries)
        found = {"LD_LIBRARY_PATH": ":".join(folders)} if folders else {}
        return found | {
            "CUDA_VISIBLE_DEVICES": ",".join(self.uuids),
            "CUDA_DEVICE_ORDER": "PCI_BUS_ID",
            # Kernels are loaded when they are first used: hundreds of megabytes less of memory.
            "CUDA_MODULE_LOADING": "LAZY",
            "CUDA_CACHE_MAXSIZE": str(_KERNEL_CACHE_BYTES),
        }


def plan_grant(
    devices: Sequence[GpuDevice],
    *,
    whole_sys: bool = False,
    host: Path = Path("/"),
    environment: Mapping[str, str] = os.environ,
) -> GpuGrant:
    """What a worker on these devices gets. With `whole_sys` it sees every device that the kernel
    lists, for drivers that do not start with less. `host` is where the host's files lie, for tests.
    """
    at = _Host(host)
    wanted = [*_SHARED_DEVICES]
    for device in devices:
        wanted += [f"/dev/nvidia{device.minor}"] if device.minor is not None else []
        wanted += [f"/dev/nvidia-caps/nvidia-cap{minor}" for minor in device.capability_minors]
    facts = [*_FACTS, *(_WHOLE_SYS if whole_sys else ())]
    links: list[tuple[str, str]] = []
    for function in () if whole_sys else at.functions(devices):
        facts.append(function)
        links.append((function, f"/sys/bus/pci/devices/{Path(function).name}"))
    return GpuGrant(
        uuids=tuple(device.uuid for device in devices),
        devices=tuple(at.mount(path) for path in dict.fromkeys(wanted) if at.has(path)),
        libraries=tuple(_driver_files(at, environment)),
        facts=tuple(at.mount(path) for path in dict.fromkeys(facts) if at.has(path)),
        links=tuple(links),
    )


def _driver_files(at: "_Host", environment: Mapping[str, str]) -> Iterator[Mount]:
    """The driver's libraries outside of the loader's own folders, which every worker sees."""
    for folder in _driver_folders(at, environment):
        for name in at.names(folder):
            if _DRIVER_FILES.fullmatch(name):
                yield at.mount(f"{folder}/{name}")


def _driver_folders(at: "_Host", environment: Mapping[str, str]) -> list[str]:
    candidates = [
        *filter(None, environment.get("LD_LIBRARY_PATH", "").split(":")),
        *at.folders_in_cache(),
        *_KNOWN_FOLDERS,
        *at.optional_packages(),
        # Debian's driver: a link through /etc/alternatives, which a worker does not see.
        *(at.real_folder(f"{folder}/{_DRIVER}") for folder in LIBRARY_PATHS),
    ]
    folders = dict.fromkeys(str(Path(path)) for path in candidates if Path(path).is_absolute())
    return [
        folder
        for folder in folders
        if folder not in LIBRARY_PATHS and at.has(f"{folder}/{_DRIVER}")
    ]


@dataclass(frozen=True, slots=True)
class _Host:
    """The host's files below a folder that stands for `/`."""

    root: Path

    def path(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def has(self, path: str) -> bool:
        return self.path(path).exists()

    def mount(self, path: str) -> Mount:
        return Mount(str(self.path(path).resolve()), path)

    def real_folder(self, path: str) -> str:
        """Where the file behind `path` lies."""
        real = self.path(path).resolve().parent
        root = self.root.resolve()
        return f"/{real.relative_to(root)}" if real.is_relative_to(root) else str(real)

    def names(self, folder: str) -> list[str]:
        return sorted(os.listdir(self.path(folder)))

    def functions(self, devices: Sequence[GpuDevice]) -> Iterator[str]:
        """The cards' PCI functions (graphics, sound, USB), at the kernel's own paths."""
        listed = self.path("/sys/bus/pci/devices")
        for device in devices:
            card, _, _ = device.pci_address.rpartition(".")
            for entry in sorted(listed.glob(f"{card}.*")) if card else ():
                yield f"/{entry.resolve().relative_to(self.root.resolve())}"

    def optional_packages(self) -> list[str]:
        found = self.path(_OPTIONAL_PACKAGES).glob(f"*/lib*/{_DRIVER}")
        return sorted(f"/{path.parent.relative_to(self.root)}" for path in found)

    def folders_in_cache(self) -> list[str]:
        """Where the loader's cache has the driver. Without a cache, nowhere."""
        program = next((path for path in _LDCONFIG if Path(path).exists()), None)
        if program is None or self.root != Path("/"):
            return []
        try:
            answer = subprocess.run(  # noqa: S603 - a path of the system's
                [program, "-p"], capture_output=True, text=True, timeout=_LDCONFIG_TIMEOUT_S
            )
        except (OSError, subprocess.TimeoutExpired):
            return []
        return folders_of_cache(answer.stdout)


def folders_of_cache(listing: str) -> list[str]:
    """The folders of 64-bit drivers in what `ldconfig -p` prints."""
    pattern = rf"^\s*{re.escape(_DRIVER)} \(([^)]*)\) => (\S+)$"
    found = re.finditer(pattern, listing, re.MULTILINE)
    return [str(Path(match[2]).parent) for match in found if "x86-64" in match[1]]
