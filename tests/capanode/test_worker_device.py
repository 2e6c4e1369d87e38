"""What a worker does with the GPU that it was given, on a torch and a driver that are stand-ins."""

from types import SimpleNamespace

import pytest

from capanode.device_problems import DeviceFailure, DeviceProblem, failure_of_code
from capanode.engines.cuda_device import open_cuda
from capanode.worker.device import cuda_init, device_failure_of

GIB = 1024**3


class FakeTensor:
    """Adds up like two numbers on a card that works; `wrong` on one that does not."""

    def __init__(self, total: float) -> None:
        self.total = total

    def __add__(self, other: int) -> "FakeTensor":
        return FakeTensor(self.total + 2 * other)

    def sum(self) -> "FakeTensor":
        return self

    def item(self) -> float:
        return self.total


class FakeTorch:
    """The part of torch that opens a card of 24 GiB; `error` is what its first use raises."""

    def __init__(self, error: Exception | None = None, ones: float = 2.0) -> None:
        self.error, self._ones = error, ones
        self.share: float | None = None
        self.cuda = SimpleNamespace(
            init=self._init,
            mem_get_info=lambda device: (23 * GIB, 24 * GIB),
            set_per_process_memory_fraction=self._limit,
        )

    def ones(self, count: int, *, device: str) -> FakeTensor:
        assert (count, device) == (2, "cuda")
        return FakeTensor(self._ones)

    def _init(self) -> None:
        if self.error is not None:
            raise self.error

    def _limit(self, share: float, device: str) -> None:
        self.share = share


class AcceleratorError(RuntimeError):
    """As torch names what its runtime reports."""


def opened(torch: FakeTorch, allocated_bytes: int | None = None) -> DeviceFailure | None:
    return open_cuda(allocated_bytes, start_driver=lambda: None, library=torch)


def test_a_card_that_works_is_taken_with_the_promised_share_of_it() -> None:
    torch = FakeTorch()
    assert opened(torch, 6 * GIB) is None
    assert torch.share == pytest.approx(0.25)
    assert opened(torch, 99 * GIB) is None
    assert torch.share == 1.0


def test_the_drivers_own_error_comes_first() -> None:
    """torch hides its number."""
    torch = FakeTorch(RuntimeError("CUDA initialization failed"))
    failure = open_cuda(None, start_driver=lambda: failure_of_code(999), library=torch)
    assert failure is not None
    assert failure.problem is DeviceProblem.DRIVER_LOST


@pytest.mark.parametrize(
    "error",
    [
        AssertionError("Torch not compiled with CUDA enabled"),
        RuntimeError("No CUDA GPUs are available"),
        AcceleratorError("CUDA error: no kernel image is available for execution on the device"),
    ],
)
def test_torchs_error_is_told_and_nothing_runs_on_the_processor(error: Exception) -> None:
    failure = opened(FakeTorch(error))
    assert failure is not None
    assert failure.problem is not DeviceProblem.UNKNOWN


def test_a_card_that_computes_wrongly_is_not_taken() -> None:
    failure = opened(FakeTorch(ones=1.5))
    assert failure is not None
    assert failure.problem is DeviceProblem.CARD_FAILED


def test_without_a_driver_the_library_is_named() -> None:
    failure = cuda_init()
    if failure is None:
        pytest.skip("this machine has a driver that works")
    assert failure.reason


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (AcceleratorError("CUDA error: unknown error"), DeviceProblem.DRIVER_LOST),
        (RuntimeError("CUDA error: uncorrectable ECC error"), DeviceProblem.CARD_FAILED),
        # What an input or a bug of ours can bring about is no fault of the card.
        (AcceleratorError("CUDA error: an illegal memory access was encountered"), None),
        (AcceleratorError("CUDA error: device-side assert triggered"), None),
        (AcceleratorError("CUDA error: out of memory"), None),
        (RuntimeError("shapes do not match"), None),
    ],
)
def test_errors_of_the_card_are_told_from_errors_of_a_job(
    error: Exception, problem: DeviceProblem | None
) -> None:
    failure = device_failure_of(error)
    assert (failure.problem if failure else None) is problem
