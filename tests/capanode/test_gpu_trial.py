"""Which GPUs jobs run on, and what becomes of a node whose GPU cannot be used."""

import pytest

from capanode.device_problems import DeviceFailure, DeviceProblem
from capanode.errors import GpuError
from capanode.gpu_trial import settle_gpus
from capanode.gpus import Gpu, GpuReport
from capanode.hardware import Machine
from capanode.sandbox.gpu import GpuDevice
from capanode.sandbox.probe import GpuTrial, IsolationReport
from capanode.settings import IfGpuFails
from capanode.start_plan import require_leave
from protocol.messages import IsolationTier

GIB = 1024**3
CARD = Gpu("RTX 3090", 24 * GIB, 24 * GIB, GpuDevice("GPU-1", 0))


def machine(torch_cuda: str | None = "13.0") -> Machine:
    report = GpuReport((CARD,), "580.1", None, driver_cuda=(13, 0))
    return Machine("cpu", 2, GIB, GIB, "Linux", report, torch_cuda)


def report(trial: GpuTrial | None) -> IsolationReport:
    return IsolationReport(IsolationTier.BWRAP, (), (), None, trial)


def test_a_gpu_whose_driver_starts_in_the_sandbox_runs_jobs() -> None:
    assert settle_gpus(machine(), [CARD], report(GpuTrial(""))) == ((CARD,), None)


@pytest.mark.parametrize(
    ("met", "problem", "words"),
    [
        ("cuInit gave 999", DeviceProblem.DRIVER_LOST, "nvidia_uvm"),
        ("cuInit gave 304", DeviceProblem.NOT_PERMITTED, "/dev/nvidia"),
        ("libcuda.so.1 does not load: no such file", DeviceProblem.DRIVER_MISSING, "ldconfig"),
    ],
)
def test_a_driver_that_does_not_start_there_is_explained(
    met: str, problem: DeviceProblem, words: str
) -> None:
    gpus, failure = settle_gpus(machine(), [CARD], report(GpuTrial(met)))
    assert gpus == ()
    assert failure is not None
    assert failure.problem is problem
    assert words in failure.advice


def test_a_machine_without_a_gpu_has_none_and_nothing_failed() -> None:
    none = Machine("cpu", 2, GIB, GIB, "Linux", GpuReport((), None, "no GPU"), "13.0")
    assert settle_gpus(none, (), report(None)) == ((), None)


def test_nothing_runs_on_the_processor_instead_without_leave() -> None:
    lost = DeviceFailure(DeviceProblem.DRIVER_LOST, "CUDA 999")
    with pytest.raises(GpuError, match=r"CUDA 999: .*nvidia_uvm.*--if-gpu-fails cpu"):
        require_leave(IfGpuFails.STOP, lost)
    require_leave(IfGpuFails.CPU, lost)


def test_a_torch_without_cuda_is_its_owners_choice() -> None:
    _, failure = settle_gpus(machine(torch_cuda=None), (), report(None))
    assert failure is not None
    require_leave(IfGpuFails.STOP, failure)
