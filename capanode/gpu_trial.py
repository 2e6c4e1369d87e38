"""Which GPUs jobs run on: each was started in the sandbox, first its driver by the self-test, and
then torch, which is more particular.
"""

import json
import re
import socket
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

from capanode.device_problems import DeviceFailure, DeviceProblem, failure_of_code
from capanode.gpus import Gpu
from capanode.hardware import Machine, gpu_failure
from capanode.sandbox.gpu import plan_grant
from capanode.sandbox.limits import limits_for_model
from capanode.sandbox.probe import IsolationReport
from capanode.sandbox.spawn import Program, Sandbox, SandboxedProcess

# To load torch's CUDA libraries from a slow disk takes the most of it.
TORCH_WITHIN_S = 90.0
_REPORT_BYTES_MAX = 16 * 1024
_REASON_CHARS_MAX = 500


@dataclass(frozen=True, slots=True)
class SettledGpus:
    """`working` run jobs. `failures` are of the others, or of all where it is not one card's."""

    working: tuple[Gpu, ...]
    failures: tuple[DeviceFailure, ...] = ()


def settle_gpus(machine: Machine, gpus: Sequence[Gpu], report: IsolationReport) -> SettledGpus:
    """What is known of the GPUs without torch."""
    failure = gpu_failure(machine)
    if failure is None and report.gpu is not None and report.gpu.problem:
        failure = failure_of_trial(report.gpu.problem)
    return SettledGpus(tuple(gpus)) if failure is None else SettledGpus((), (failure,))


def failure_of_trial(problem: str) -> DeviceFailure:
    """What the self-test met, in words for the owner."""
    code = re.search(r" gave (\d+)$", problem)
    if code is not None:
        return failure_of_code(int(code[1]))
    return DeviceFailure(DeviceProblem.DRIVER_MISSING, problem)


def try_torch(
    sandbox: Sandbox,
    gpus: Sequence[Gpu],
    *,
    whole_sys: bool = False,
    within_s: float = TORCH_WITHIN_S,
) -> SettledGpus:
    """Let torch compute on each of them, all at once, confined as a worker is. Blocks for seconds.

    Raises SandboxError if nothing can be started at all.
    """
    working, failures = [], []
    with ExitStack() as stack:
        started = []
        for gpu in gpus:
            process = sandbox.spawn(
                Program(
                    "capanode.worker.gpu_check",
                    limits=limits_for_model(0, gpu=True),
                    gpu=plan_grant([gpu.device], whole_sys=whole_sys),
                )
            )
            stack.callback(_end, process)
            started.append((gpu, process))
        for gpu, process in started:
            failure = _heard(process.channel, within_s)
            if failure is None:
                working.append(gpu)
            else:
                reason = f"{gpu.name} ({gpu.device.uuid}): {failure.reason}"
                failures.append(DeviceFailure(failure.problem, reason))
    return SettledGpus(tuple(working), tuple(failures))


def _heard(channel: socket.socket, within_s: float) -> DeviceFailure | None:
    channel.settimeout(within_s)
    received = b""
    try:
        while not received.endswith(b"\n") and len(received) < _REPORT_BYTES_MAX:
            part = channel.recv(_REPORT_BYTES_MAX)
            if not part:
                break
            received += part
        report = json.loads(received)
        if not report:
            return None
        problem, reason = DeviceProblem(report["problem"]), str(report["reason"])
    except TimeoutError:
        words = f"torch did not start on the GPU within {within_s:g} s"
        return DeviceFailure(DeviceProblem.CARD_FAILED, words)
    except (OSError, ValueError, LookupError, TypeError):
        words = "the process that tried the GPU ended without a word"
        return DeviceFailure(DeviceProblem.UNKNOWN, words)
    return DeviceFailure(problem, reason[:_REASON_CHARS_MAX])


def _end(process: SandboxedProcess) -> None:
    process.kill()
    process.popen.wait()
    process.close()
