"""Why a GPU cannot be had, in words that its owner can act on.

CUDA says it by a number (`cuda.h`, CUresult) or, through torch, in a sentence; the driver's own
tools by NVML's numbers. What they mean in practice is from the threads of other projects' users.
"""

import re
from dataclasses import dataclass
from enum import StrEnum


class DeviceProblem(StrEnum):
    """Travels from a worker to its node."""

    DRIVER_TOO_OLD = "driver_too_old"
    DRIVER_CHANGED = "driver_changed"
    DRIVER_LOST = "driver_lost"
    DRIVER_MISSING = "driver_missing"
    NO_DEVICE = "no_device"
    NOT_PERMITTED = "not_permitted"
    CARD_TOO_OLD = "card_too_old"
    CARD_FAILED = "card_failed"
    MEMORY_TAKEN = "memory_taken"
    TORCH_WITHOUT_CUDA = "torch_without_cuda"
    UNKNOWN = "unknown"


ADVICE: dict[DeviceProblem, str] = {
    DeviceProblem.DRIVER_TOO_OLD: (
        "install a newer NVIDIA driver (`nvidia-smi` says which CUDA the present one has), or the "
        "build of torch for it: `capanode setup` chooses one"
    ),
    DeviceProblem.DRIVER_CHANGED: (
        "the driver was updated while the old one is loaded: reboot, or unload its modules "
        "(nvidia_uvm, nvidia_drm, nvidia_modeset, nvidia) and load them again"
    ),
    DeviceProblem.DRIVER_LOST: (
        "after a suspend, reload the module (`sudo rmmod nvidia_uvm && sudo modprobe nvidia_uvm`, "
        "with all programs that use the card stopped) or reboot"
    ),
    DeviceProblem.DRIVER_MISSING: (
        "install the NVIDIA driver, or tell the loader where its libcuda.so.1 is (LD_LIBRARY_PATH, "
        "or /etc/ld.so.conf.d and ldconfig)"
    ),
    DeviceProblem.NO_DEVICE: (
        "check that `nvidia-smi -L` lists the card and that CUDA_VISIBLE_DEVICES does not hide it; "
        "in a container pass it in (`--gpus all`)"
    ),
    DeviceProblem.NOT_PERMITTED: (
        "let this user open /dev/nvidia* (on most systems the groups video or render; `ls -l "
        "/dev/nvidia*` says who may), and load nvidia_uvm (`sudo nvidia-modprobe -u -c 0`)"
    ),
    DeviceProblem.CARD_TOO_OLD: (
        "this torch has no kernels for the card: install an older torch that has, or use another "
        "card"
    ),
    DeviceProblem.CARD_FAILED: (
        "look for `Xid` in `dmesg`; reset the card (`sudo nvidia-smi --gpu-reset`) or reboot, and "
        "check power and cooling if it comes again"
    ),
    DeviceProblem.MEMORY_TAKEN: (
        "another program holds the card's memory (`nvidia-smi` lists them): stop it, or serve "
        "fewer or smaller models"
    ),
    DeviceProblem.TORCH_WITHOUT_CUDA: (
        "jobs run on the processor until `capanode setup` has installed the build of torch that "
        "your driver can run"
    ),
    DeviceProblem.UNKNOWN: (
        "try `nvidia-smi`, then CUDA outside of the node (`python -c 'import torch; "
        "torch.zeros(1).cuda()'`), and reboot if that fails too"
    ),
}


@dataclass(frozen=True, slots=True)
class DeviceFailure:
    """`reason` is the driver's or torch's own."""

    problem: DeviceProblem
    reason: str

    @property
    def advice(self) -> str:
        return ADVICE[self.problem]

    def __str__(self) -> str:
        return f"{self.reason}: {self.advice}"


# Of CUresult. 999 and 3 are what an nvidia_uvm that did not survive a suspend gives.
_BY_CUDA_CODE = {
    2: DeviceProblem.MEMORY_TAKEN,
    3: DeviceProblem.DRIVER_LOST,
    34: DeviceProblem.DRIVER_MISSING,  # A stub of the toolkit, in the driver's place.
    46: DeviceProblem.MEMORY_TAKEN,  # In use by another process in exclusive mode.
    100: DeviceProblem.NO_DEVICE,
    101: DeviceProblem.NO_DEVICE,
    209: DeviceProblem.CARD_TOO_OLD,
    214: DeviceProblem.CARD_FAILED,  # Uncorrectable ECC error.
    304: DeviceProblem.NOT_PERMITTED,
    719: DeviceProblem.CARD_FAILED,
    800: DeviceProblem.NOT_PERMITTED,
    802: DeviceProblem.DRIVER_LOST,  # nvidia-fabricmanager does not run.
    803: DeviceProblem.DRIVER_CHANGED,
    804: DeviceProblem.DRIVER_TOO_OLD,
    999: DeviceProblem.DRIVER_LOST,
}

_NAMES = {
    2: "out of memory",
    3: "not initialized",
    34: "a stub library stands in the driver's place",
    46: "the device is in use",
    100: "no device is seen",
    101: "no such device",
    209: "no kernels for this card",
    214: "uncorrectable memory error",
    304: "the operating system refused a call",
    719: "launch failed",
    800: "not permitted",
    802: "the system is not ready (is nvidia-fabricmanager running?)",
    803: "driver and library do not match",
    804: "the driver is too old for this card's compatibility libraries",
    999: "unknown error",
}

# In torch's sentences. The first that matches counts.
_BY_WORDS = (
    (r"not compiled with CUDA", DeviceProblem.TORCH_WITHOUT_CUDA),
    (r"driver .*too old|driver version is insufficient|error 35\b", DeviceProblem.DRIVER_TOO_OLD),
    (r"no kernel image|not compatible with the current PyTorch", DeviceProblem.CARD_TOO_OLD),
    (r"driver and library|version mismatch|Error 803", DeviceProblem.DRIVER_CHANGED),
    (r"no CUDA-capable device|No CUDA GPUs|invalid device ordinal", DeviceProblem.NO_DEVICE),
    (r"Found no NVIDIA driver|libcuda\.so", DeviceProblem.DRIVER_MISSING),
    (r"out of memory|busy or unavailable", DeviceProblem.MEMORY_TAKEN),
    (r"operation not permitted|OS call failed", DeviceProblem.NOT_PERMITTED),
    (
        r"unspecified launch failure|uncorrectable|\bECC\b|fallen off the bus|hardware stack",
        DeviceProblem.CARD_FAILED,
    ),
    (r"unknown error|initialization error", DeviceProblem.DRIVER_LOST),
)


def failure_of_code(code: int) -> DeviceFailure:
    """What an error of CUDA's driver means."""
    name = _NAMES.get(code, "an error without a name here")
    return DeviceFailure(_BY_CUDA_CODE.get(code, DeviceProblem.UNKNOWN), f"CUDA {code}: {name}")


def failure_of_words(words: str) -> DeviceFailure:
    """What a sentence of torch's means; its first line is kept."""
    first_line = words.strip().partition("\n")[0] or "no reason given"
    for pattern, problem in _BY_WORDS:
        if re.search(pattern, words, re.IGNORECASE):
            return DeviceFailure(problem, first_line)
    return DeviceFailure(DeviceProblem.UNKNOWN, first_line)
