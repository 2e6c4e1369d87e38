"""The worker's device, taken before a model is loaded: the one that its node named, or none.

A worker that was given a GPU and cannot have it ends with the driver's reason. It never computes
on the processor instead: its node's offer says what runs.
"""

import ctypes
from collections.abc import Callable
from typing import Any

from capanode.device_problems import (
    CUDA_SUCCESS,
    DeviceFailure,
    DeviceProblem,
    failure_of_code,
    failure_of_words,
)

CPU = "cpu"
CUDA = "cuda"

# How torch calls what its runtime reports, as one of these or of a subclass.
_CUDA_ERRORS = frozenset({"AcceleratorError", "CudaError", "DeferredCudaCallError"})
# What a kernel does with a hostile input or a bug of ours: no fault of the card.
_KERNEL_FAULTS = ("illegal memory access", "device-side assert", "misaligned address")


def cuda_init() -> DeviceFailure | None:
    """Start CUDA's driver in this process; what is in the way, None if nothing."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        return DeviceFailure(DeviceProblem.DRIVER_MISSING, str(error))
    code = int(driver.cuInit(0))
    return None if code == CUDA_SUCCESS else failure_of_code(code)


def open_cuda(
    allocated_bytes: int | None,
    *,
    start_driver: Callable[[], DeviceFailure | None] = cuda_init,
    load_torch: Callable[[], Any] | None = None,
) -> DeviceFailure | None:
    """Take the one GPU that this process sees and let torch allocate at most `allocated_bytes` of
    it. Computes once, because much of what is wrong shows only then."""
    failure = start_driver()
    if failure is not None:
        return failure
    torch = (load_torch or _load_torch)()
    try:
        torch.cuda.init()
        total_bytes = torch.cuda.mem_get_info(CUDA)[1]
        if allocated_bytes is not None:
            share = min(1.0, allocated_bytes / total_bytes)
            torch.cuda.set_per_process_memory_fraction(share, CUDA)
        if float((torch.ones(2, device=CUDA) + 1).sum().item()) != 4.0:
            return DeviceFailure(DeviceProblem.CARD_FAILED, "the GPU does not add two numbers up")
    # torch raises AssertionError, RuntimeError and classes of its own for one and the same thing.
    except Exception as error:
        return failure_of_words(str(error))
    return None


def _load_torch() -> Any:
    # The processor's workers of small engines do without torch, and tests without CUDA.
    import torch  # noqa: PLC0415

    return torch


def device_failure_of(error: BaseException) -> DeviceFailure | None:
    """What an engine's error says of the device; None if it is about something else."""
    names = {kind.__name__ for kind in type(error).__mro__}
    words = str(error)
    if not (names & _CUDA_ERRORS or words.startswith("CUDA error")):
        return None
    if any(fault in words for fault in _KERNEL_FAULTS) or "out of memory" in words:
        return None
    return failure_of_words(words)
