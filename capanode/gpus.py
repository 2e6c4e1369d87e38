"""The NVIDIA GPUs of this machine, as their driver reports them (NVML), and which of them are ours.

A MIG instance is a device like any other; a card that is cut into instances is none itself. Devices
are named by UUID everywhere: NVML counts cards by their place on the bus and CUDA by default by
speed, so that a number means two different cards where they are unlike.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pynvml

from capanode.device_problems import DeviceFailure, DeviceProblem
from capanode.sandbox.gpu import GpuDevice

# One such machine exists; more is a misreading.
_GPUS_MAX = 64
_CAPABILITIES = Path("/proc/driver/nvidia/capabilities")
# In NVML's words, and when NVML itself is not there.
_BY_NVML_CODE = {
    pynvml.NVML_ERROR_DRIVER_NOT_LOADED: DeviceProblem.DRIVER_MISSING,
    pynvml.NVML_ERROR_LIBRARY_NOT_FOUND: DeviceProblem.DRIVER_MISSING,
    pynvml.NVML_ERROR_NO_PERMISSION: DeviceProblem.NOT_PERMITTED,
    pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH: DeviceProblem.DRIVER_CHANGED,
    pynvml.NVML_ERROR_GPU_IS_LOST: DeviceProblem.CARD_FAILED,
    pynvml.NVML_ERROR_RESET_REQUIRED: DeviceProblem.CARD_FAILED,
}


@dataclass(frozen=True, slots=True)
class Gpu:
    """One device as its driver reports it. `compute_capability` is 0.0 where it is not told."""

    name: str
    memory_bytes: int
    free_bytes: int
    device: GpuDevice
    compute_capability: tuple[int, int] = (0, 0)


@dataclass(frozen=True, slots=True)
class GpuReport:
    """What NVML said. `problem` is why there is nothing, in words; None if there are GPUs.
    `failure` is set where there should be some: a driver is here and does not work."""

    gpus: tuple[Gpu, ...]
    driver: str | None
    problem: str | None
    failure: DeviceFailure | None = None
    # The newest CUDA that the driver knows, as (major, minor).
    driver_cuda: tuple[int, int] | None = None


def read_nvml(capabilities: Path = _CAPABILITIES) -> GpuReport:
    """Ask the NVIDIA driver. No driver, no GPU and no permission are answers, not errors."""
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        failure = _failure(error)
        is_absent = failure.problem is DeviceProblem.DRIVER_MISSING
        problem = f"no NVIDIA GPU is usable here: {error}"
        return GpuReport((), None, problem, None if is_absent else failure)
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        cuda = int(pynvml.nvmlSystemGetCudaDriverVersion())
        count = min(pynvml.nvmlDeviceGetCount(), _GPUS_MAX)
        gpus = [gpu for index in range(count) for gpu in _read_card(index, capabilities)]
    except pynvml.NVMLError as error:
        problem = f"the NVIDIA driver does not answer: {error}"
        return GpuReport((), None, problem, _failure(error))
    finally:
        pynvml.nvmlShutdown()
    if not gpus:
        return GpuReport((), driver, "the NVIDIA driver is here, but it sees no GPU")
    # CUDA's order, with the setting that every worker gets.
    gpus.sort(key=lambda gpu: gpu.device.pci_address)
    return GpuReport(tuple(gpus), driver, None, driver_cuda=(cuda // 1_000, cuda % 1_000 // 10))


def _failure(error: pynvml.NVMLError) -> DeviceFailure:
    problem = _BY_NVML_CODE.get(getattr(error, "value", 0), DeviceProblem.UNKNOWN)
    return DeviceFailure(problem, str(error))


def _read_card(index: int, capabilities: Path) -> list[Gpu]:
    """The card, or its MIG instances. Raises NVMLError."""
    card = pynvml.nvmlDeviceGetHandleByIndex(index)
    pci = pynvml.nvmlDeviceGetPciInfo(card)
    # NVML writes eight digits of domain, the kernel four.
    address = re.sub(r"^0000(?=[0-9a-f]{4}:)", "", _text(pci.busId).lower())
    minor = _ask(pynvml.nvmlDeviceGetMinorNumber, card)
    capability = _ask(pynvml.nvmlDeviceGetCudaComputeCapability, card) or (0, 0)
    mig_mode = _ask(pynvml.nvmlDeviceGetMigMode, card)
    if not mig_mode or mig_mode[0] != pynvml.NVML_DEVICE_MIG_ENABLE:
        device = GpuDevice(_text(pynvml.nvmlDeviceGetUUID(card)), minor, address)
        return [_read_gpu(card, device, capability)]
    found = []
    for number in range(_ask(pynvml.nvmlDeviceGetMaxMigDeviceCount, card) or 0):
        instance = _ask(pynvml.nvmlDeviceGetMigDeviceHandleByIndex, card, number)
        if instance is not None:
            minors = _capability_minors(capabilities / f"gpu{minor}" / "mig", instance)
            uuid = _text(pynvml.nvmlDeviceGetUUID(instance))
            device = GpuDevice(uuid, minor, address, minors)
            found.append(_read_gpu(instance, device, capability))
    return found


def _read_gpu(handle: Any, device: GpuDevice, capability: tuple[int, int]) -> Gpu:
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    name = _text(pynvml.nvmlDeviceGetName(handle))
    major, minor = capability
    return Gpu(name, int(memory.total), int(memory.free), device, (int(major), int(minor)))


def _capability_minors(mig: Path, instance: Any) -> tuple[int, ...]:
    """Which files below /dev/nvidia-caps open an instance: its memory's and its processors'."""
    memory_id = _ask(pynvml.nvmlDeviceGetGpuInstanceId, instance)
    processors_id = _ask(pynvml.nvmlDeviceGetComputeInstanceId, instance)
    memory = mig / f"gi{memory_id}"
    minors = []
    for access in (memory / "access", memory / f"ci{processors_id}" / "access"):
        try:
            found = re.search(r"^DeviceFileMinor:\s*(\d+)", access.read_text(), re.MULTILINE)
        except OSError:
            continue
        if found:
            minors.append(int(found[1]))
    return tuple(minors)


def _ask(question: Any, *arguments: object) -> Any:
    """The answer; None where this card or driver has none."""
    try:
        return question(*arguments)
    except (
        pynvml.NVMLError_NotSupported,
        pynvml.NVMLError_NotFound,
        pynvml.NVMLError_NoPermission,
    ):
        return None


def _text(value: Any) -> str:
    """NVML's older bindings answer with bytes."""
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def chosen_gpus(gpus: Sequence[Gpu], environment: Mapping[str, str]) -> tuple[Gpu, ...]:
    """Those that CUDA_VISIBLE_DEVICES leaves, in its order; all without it.

    As for CUDA, a word that names nothing ends the list. Numbers count the cards by their place on
    the bus, as `nvidia-smi` shows them, whatever CUDA_DEVICE_ORDER says.
    """
    wanted = environment.get("CUDA_VISIBLE_DEVICES")
    if wanted is None:
        return tuple(gpus)
    chosen: list[Gpu] = []
    for word in filter(None, (part.strip() for part in wanted.split(","))):
        if word.isdecimal():
            found = [*gpus[int(word) : int(word) + 1]]
        else:
            found = [gpu for gpu in gpus if gpu.device.uuid.startswith(word)]
        if len(found) != 1 or found[0] in chosen:
            break
        chosen += found
    return tuple(chosen)
