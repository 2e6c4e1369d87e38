"""Which GPUs jobs run on, after the self-test has started their driver in the sandbox."""

import re
from collections.abc import Sequence

from capanode.device_problems import DeviceFailure, DeviceProblem, failure_of_code
from capanode.gpus import Gpu
from capanode.hardware import Machine, gpu_failure
from capanode.sandbox.probe import IsolationReport


def settle_gpus(
    machine: Machine, gpus: Sequence[Gpu], report: IsolationReport
) -> tuple[tuple[Gpu, ...], DeviceFailure | None]:
    """The GPUs that work, and why there are none although there should be."""
    failure = gpu_failure(machine)
    if failure is None and report.gpu is not None and report.gpu.problem:
        failure = failure_of_trial(report.gpu.problem)
    return ((), failure) if failure is not None else (tuple(gpus), None)


def failure_of_trial(problem: str) -> DeviceFailure:
    """What the self-test met, in words for the owner."""
    code = re.search(r" gave (\d+)$", problem)
    if code is not None:
        return failure_of_code(int(code[1]))
    return DeviceFailure(DeviceProblem.DRIVER_MISSING, problem)
