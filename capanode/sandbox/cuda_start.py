"""CUDA's driver, started as far as a program with a GPU needs it: initialised, with a context and a
little memory on the first device. Standard library only: torch would hide the driver's number.
"""

import ctypes
from dataclasses import dataclass

LIBRARY = "libcuda.so.1"
_PROBE_BYTES = 1024 * 1024


@dataclass(frozen=True, slots=True)
class CudaError:
    """`step` is the driver's function that gave `code` (a CUresult)."""

    step: str
    code: int

    def __str__(self) -> str:
        return f"{self.step} gave {self.code}"


def start_cuda() -> CudaError | None:
    """What the driver refused first; None if all of it works. Raises OSError if there is no
    library to load."""
    driver = ctypes.CDLL(LIBRARY)
    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    steps = (
        ("cuInit", (ctypes.c_uint(0),)),
        ("cuDeviceGet", (ctypes.byref(device), ctypes.c_int(0))),
        ("cuDevicePrimaryCtxRetain", (ctypes.byref(context), device)),
        ("cuCtxSetCurrent", (context,)),
        ("cuMemAlloc_v2", (ctypes.byref(memory), ctypes.c_size_t(_PROBE_BYTES))),
    )
    for step, arguments in steps:
        code = int(getattr(driver, step)(*arguments))
        if code != 0:
            return CudaError(step, code)
    return None
