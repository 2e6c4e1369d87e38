"""What this machine computes with, read without touching it: GPUs by NVML, the rest from /proc.

A node without a GPU is a legal node and says so. A GPU that the installed torch cannot use is not
offered: an offer states what a job will really run on. Nothing here imports torch.
"""

import importlib.util
import os
import platform
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from capanode.device_problems import DeviceFailure, DeviceProblem
from capanode.gpus import Gpu, GpuReport, chosen_gpus, read_nvml
from protocol.limits import NAME_CHARS_MAX
from protocol.offers import Hardware

_GIB = 1024**3
# Under this, a worker with the smallest demo model (0.7 GB resident) starves everything else.
_MEMORY_BYTES_MIN = 2 * _GIB
_AMD_VENDOR = "0x1002"
# PCI's class of display controllers.
_DISPLAY_CLASS = "0x03"


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything about the machine that an offer or `capanode doctor` states."""

    cpu_name: str
    cpu_threads: int  # that this process may use
    memory_bytes: int  # that this process may use: the machine's, or its container's limit
    memory_free_bytes: int
    system: str
    gpu: GpuReport
    torch_cuda: str | None  # the CUDA version that the installed torch was built for
    # A GPU that no engine of ours runs on yet, in words; empty without one.
    foreign_gpu: str = ""


@dataclass(frozen=True, slots=True)
class MachineCheck:
    """One line of `capanode doctor`. `advice` is what to do about it, empty if nothing; what
    `is_to_do` is a step that its owner has not taken yet, and no fault."""

    subject: str
    works: bool
    detail: str
    advice: str = ""
    is_to_do: bool = False


def probe_machine(
    *,
    read_gpus: Callable[[], GpuReport] | None = None,
    read_torch_cuda: Callable[[], str | None] | None = None,
    proc: Path = Path("/proc"),
    cgroup: Path = Path("/sys/fs/cgroup"),
    pci: Path = Path("/sys/bus/pci/devices"),
) -> Machine:
    """Look at the machine. The arguments are for tests; each default is the real thing."""
    memory = psutil.virtual_memory()
    limit = _container_limit(cgroup)
    total = memory.total if limit is None else min(memory.total, limit)
    return Machine(
        cpu_name=_cpu_name(proc / "cpuinfo"),
        cpu_threads=_usable_threads(),
        memory_bytes=total,
        memory_free_bytes=min(memory.available, total),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        gpu=(read_gpus or read_nvml)(),
        torch_cuda=(read_torch_cuda or torch_cuda_version)(),
        foreign_gpu=_foreign_gpu(pci),
    )


def hardware_of(machine: Machine, gpus: Sequence[Gpu] = ()) -> Hardware:
    """What the node's offer says if jobs run on `gpus`, or on the processor without any. Of unlike
    GPUs it names the kind with the most memory in all: each model says what it runs on itself."""
    if gpus:
        groups: dict[tuple[str, int], int] = {}
        for gpu in gpus:
            groups[gpu.name, gpu.memory_bytes] = groups.get((gpu.name, gpu.memory_bytes), 0) + 1
        (name, memory_bytes), count = max(groups.items(), key=lambda item: item[0][1] * item[1])
        return Hardware("cuda", name[:NAME_CHARS_MAX], memory_bytes, count)
    suffix = f" ({machine.cpu_threads} threads)"
    name = machine.cpu_name[: NAME_CHARS_MAX - len(suffix)] + suffix
    return Hardware("cpu", name, machine.memory_bytes, 1)


def usable_gpus(machine: Machine, environment: Mapping[str, str] = os.environ) -> tuple[Gpu, ...]:
    """Those that jobs may run on: what CUDA_VISIBLE_DEVICES leaves, and none that must fail."""
    return () if gpu_failure(machine) else chosen_gpus(machine.gpu.gpus, environment)


def gpu_failure(machine: Machine) -> DeviceFailure | None:
    """Why GPUs that are here cannot be used, as far as it shows from outside. A newer minor version
    of CUDA runs on an older driver of the same major version."""
    found = machine.gpu
    if found.failure is not None:
        return found.failure
    if not found.gpus:
        return None
    if machine.torch_cuda is None:
        what = "the installed torch is a build without CUDA"
        return DeviceFailure(DeviceProblem.TORCH_WITHOUT_CUDA, what)
    built_for = int(machine.torch_cuda.partition(".")[0])
    if found.driver_cuda is not None and found.driver_cuda[0] < built_for:
        supported = ".".join(map(str, found.driver_cuda))
        return DeviceFailure(
            DeviceProblem.DRIVER_TOO_OLD,
            f"driver {found.driver} knows CUDA up to {supported}, and torch was built for "
            f"{machine.torch_cuda}",
        )
    return None


def hardware_findings(
    machine: Machine, failure: DeviceFailure | None = None
) -> tuple[MachineCheck, ...]:
    """Processor, memory and GPU, for `capanode doctor`; `failure` is what a trial of it met."""
    return (
        MachineCheck("processor", True, f"{machine.cpu_name}, {machine.cpu_threads} threads"),
        _memory_finding(machine),
        _gpu_finding(machine, failure or gpu_failure(machine)),
    )


def _memory_finding(machine: Machine) -> MachineCheck:
    detail = (
        f"{machine.memory_bytes / _GIB:.1f} GiB, {machine.memory_free_bytes / _GIB:.1f} GiB free"
    )
    if machine.memory_free_bytes >= _MEMORY_BYTES_MIN:
        return MachineCheck("memory", True, detail)
    return MachineCheck(
        "memory",
        False,
        detail,
        f"free at least {_MEMORY_BYTES_MIN / _GIB:.0f} GiB, or raise the container's limit: the "
        "smallest model needs that much",
    )


def _gpu_finding(machine: Machine, failure: DeviceFailure | None) -> MachineCheck:
    found = machine.gpu
    names = ", ".join(
        f"{gpu.name} ({gpu.memory_bytes / _GIB:.0f} GiB, {gpu.free_bytes / _GIB:.0f} GiB free)"
        for gpu in found.gpus
    )
    if failure is not None:
        detail = f"{names}: {failure.reason}" if names else failure.reason
        return MachineCheck("gpu", False, detail, failure.advice)
    if found.problem is not None:
        if machine.foreign_gpu:
            advice = "nothing to do: jobs run on the processor, and the offer says so"
            return MachineCheck("gpu", False, machine.foreign_gpu, advice)
        return MachineCheck(
            "gpu",
            False,
            found.problem,
            "nothing to do if there is no NVIDIA GPU: jobs run on the processor, and the offer "
            "says so; otherwise install the driver and check `nvidia-smi`",
        )
    detail = f"{names}; driver {found.driver}; torch for CUDA {machine.torch_cuda}"
    return MachineCheck("gpu", True, detail)


def _foreign_gpu(pci: Path) -> str:
    """A GPU of another maker, from the system's own lists."""
    if platform.system() == "Darwin":
        return "an Apple GPU: not supported yet (nor is macOS, where nothing confines a worker)"
    for card in sorted(pci.glob("*")):
        try:
            kind = (card / "class").read_text().strip()
            vendor = (card / "vendor").read_text().strip()
        except OSError:
            continue
        if kind.startswith(_DISPLAY_CLASS) and vendor == _AMD_VENDOR:
            return f"an AMD GPU at {card.name}: not supported yet (ROCm)"
    return ""


def torch_cuda_version() -> str | None:
    """The CUDA version in torch's own `version.py`, read as text; None for a CPU build or no torch.

    Importing torch would cost the node 200 MB and break the rule that only workers do.
    """
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version_file = Path(spec.origin).with_name("version.py")
    try:
        text = version_file.read_text(encoding="utf-8")
    except OSError:
        return None
    match = re.search(r"^cuda\b[^=]*=\s*['\"]([^'\"]+)['\"]", text, re.MULTILINE)
    return match[1] if match else None


def _cpu_name(cpuinfo: Path) -> str:
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    name = match[1] if match else platform.processor() or platform.machine()
    return " ".join(name.split()) or "unknown processor"


def _usable_threads() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _container_limit(cgroup: Path) -> int | None:
    """The memory limit that a container runs under (cgroup v2, then v1); None if there is none."""
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        try:
            text = (cgroup / name).read_text().strip()
        except OSError:
            continue
        # cgroup v1 says "no limit" with a number that no machine has.
        if text.isdecimal() and 0 < int(text) < 2**50:
            return int(text)
    return None
