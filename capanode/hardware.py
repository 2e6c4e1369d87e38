"""What this machine computes with, read without touching it: GPUs by NVML, the rest from /proc.

A node without a GPU is a legal node and says so. A GPU that the installed torch cannot use is not
offered: an offer states what a job will really run on. Nothing here imports torch.
"""

import importlib.util
import os
import platform
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pynvml

from protocol.limits import NAME_CHARS_MAX
from protocol.offers import Hardware

_GIB = 1024**3
# Under this, a worker with the smallest demo model (0.7 GB resident) starves everything else.
_MEMORY_BYTES_MIN = 2 * _GIB
# One such machine exists; more is a misreading.
_GPUS_MAX = 64


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU as its driver reports it."""

    name: str
    memory_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class GpuReport:
    """What NVML said. `problem` is why there is nothing, in words; None if there are GPUs."""

    gpus: tuple[Gpu, ...]
    driver: str | None
    problem: str | None


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


@dataclass(frozen=True, slots=True)
class MachineCheck:
    """One line of `capanode doctor`. `advice` is what to do about it, empty if nothing."""

    subject: str
    works: bool
    detail: str
    advice: str = ""


def probe_machine(
    *,
    read_gpus: Callable[[], GpuReport] | None = None,
    read_torch_cuda: Callable[[], str | None] | None = None,
    proc: Path = Path("/proc"),
    cgroup: Path = Path("/sys/fs/cgroup"),
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
    )


def hardware_of(machine: Machine) -> Hardware:
    """What the node's offer says. Of unlike GPUs it names the kind with the most memory in all,
    since one line of an offer has to describe every one of them."""
    if machine.gpu.gpus and machine.torch_cuda is not None:
        groups: dict[tuple[str, int], int] = {}
        for gpu in machine.gpu.gpus:
            groups[gpu.name, gpu.memory_bytes] = groups.get((gpu.name, gpu.memory_bytes), 0) + 1
        (name, memory_bytes), count = max(groups.items(), key=lambda item: item[0][1] * item[1])
        return Hardware("cuda", name[:NAME_CHARS_MAX], memory_bytes, count)
    suffix = f" ({machine.cpu_threads} threads)"
    name = machine.cpu_name[: NAME_CHARS_MAX - len(suffix)] + suffix
    return Hardware("cpu", name, machine.memory_bytes, 1)


def hardware_findings(machine: Machine) -> tuple[MachineCheck, ...]:
    """Processor, memory and GPU, for `capanode doctor`."""
    return (
        MachineCheck("processor", True, f"{machine.cpu_name}, {machine.cpu_threads} threads"),
        _memory_finding(machine),
        _gpu_finding(machine),
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


def _gpu_finding(machine: Machine) -> MachineCheck:
    if machine.gpu.problem is not None:
        return MachineCheck(
            "gpu",
            False,
            machine.gpu.problem,
            "nothing to do if there is no NVIDIA GPU: jobs run on the processor, and the offer "
            "says so; otherwise install the driver and check `nvidia-smi`",
        )
    names = ", ".join(
        f"{gpu.name} ({gpu.memory_bytes / _GIB:.0f} GiB, {gpu.free_bytes / _GIB:.0f} GiB free)"
        for gpu in machine.gpu.gpus
    )
    detail = f"{names}; driver {machine.gpu.driver}"
    if machine.torch_cuda is None:
        return MachineCheck(
            "gpu",
            False,
            f"{detail}; the installed torch is a build without CUDA, so jobs run on the processor",
            "install a CUDA build of torch: `pip install torch`, without the pin to the CPU build "
            "in constraints.txt",
        )
    return MachineCheck("gpu", True, f"{detail}; torch for CUDA {machine.torch_cuda}")


def read_nvml() -> GpuReport:
    """Ask the NVIDIA driver. No driver, no GPU and no permission are answers, not errors."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        return GpuReport((), None, f"no NVIDIA GPU is usable here: {error}")
    try:
        count = min(pynvml.nvmlDeviceGetCount(), _GPUS_MAX)
        gpus = tuple(_read_gpu(index) for index in range(count))
        driver = str(pynvml.nvmlSystemGetDriverVersion())
    except pynvml.NVMLError as error:
        return GpuReport((), None, f"the NVIDIA driver does not answer: {error}")
    finally:
        pynvml.nvmlShutdown()
    if not gpus:
        return GpuReport((), driver, "the NVIDIA driver is here, but it sees no GPU")
    return GpuReport(gpus, driver, None)


def _read_gpu(index: int) -> Gpu:
    handle = pynvml.nvmlDeviceGetHandleByIndex(index)
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return Gpu(str(pynvml.nvmlDeviceGetName(handle)), int(memory.total), int(memory.free))


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
