"""The worker's GPU in the words of CUDA's driver, before torch is loaded, and of torch's errors.

A worker that was given a GPU and cannot have it ends with the driver's reason. It never computes
on the processor instead: its node's offer says what runs. How the GPU is taken is in
`capanode.engines.cuda_device`.
"""

from capanode.device_problems import (
    DeviceFailure,
    DeviceProblem,
    failure_of_code,
    failure_of_words,
)
from capanode.sandbox.cuda_start import start_cuda

CPU = "cpu"
CUDA = "cuda"

# How torch calls what its runtime reports, as one of these or of a subclass.
_CUDA_ERRORS = frozenset({"AcceleratorError", "CudaError", "DeferredCudaCallError"})
# What a kernel does with a hostile input or a bug of ours: no fault of the card.
_KERNEL_FAULTS = ("illegal memory access", "device-side assert", "misaligned address")


def cuda_init() -> DeviceFailure | None:
    """Start CUDA's driver in this process; what is in the way, None if nothing."""
    try:
        refused = start_cuda()
    except OSError as error:
        return DeviceFailure(DeviceProblem.DRIVER_MISSING, str(error))
    return None if refused is None else failure_of_code(refused.code)


def device_failure_of(error: BaseException) -> DeviceFailure | None:
    """What an engine's error says of the device; None if it is about something else."""
    names = {kind.__name__ for kind in type(error).__mro__}
    words = str(error)
    if not (names & _CUDA_ERRORS or words.startswith("CUDA error")):
        return None
    if any(fault in words for fault in _KERNEL_FAULTS) or "out of memory" in words:
        return None
    return failure_of_words(words)
