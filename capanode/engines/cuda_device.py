"""The one GPU that a worker sees, taken before a model is loaded."""

from collections.abc import Callable
from typing import Any

import torch

from capanode.device_problems import DeviceFailure, DeviceProblem, failure_of_words
from capanode.worker.device import CUDA, cuda_init

# torch raises several kinds for one and the same thing.
_ERRORS = (RuntimeError, AssertionError, OSError, torch.cuda.DeferredCudaCallError)


def open_cuda(
    allocated_bytes: int | None,
    *,
    start_driver: Callable[[], DeviceFailure | None] = cuda_init,
    library: Any = torch,
) -> DeviceFailure | None:
    """Take the GPU, and let torch allocate at most `allocated_bytes` of it; returns what is in the
    way. Computes once, because much of what is wrong shows only then. `library` is torch, or a
    test's stand-in for it."""
    failure = start_driver()
    if failure is not None:
        return failure
    try:
        library.cuda.init()
        total_bytes = library.cuda.mem_get_info(CUDA)[1]
        if allocated_bytes is not None:
            share = min(1.0, allocated_bytes / total_bytes)
            library.cuda.set_per_process_memory_fraction(share, CUDA)
        if float((library.ones(2, device=CUDA) + 1).sum().item()) != 4.0:
            return DeviceFailure(DeviceProblem.CARD_FAILED, "the GPU does not add two numbers up")
    except _ERRORS as error:
        return failure_of_words(str(error))
    return None
