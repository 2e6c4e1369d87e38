"""Which GPUs jobs run on, and what becomes of a node whose GPU cannot be used."""

import os
import socket
import subprocess

import pytest

from capanode.device_problems import DeviceFailure, DeviceProblem
from capanode.errors import GpuError
from capanode.gpu_trial import SettledGpus, settle_gpus, try_torch
from capanode.gpus import Gpu, GpuReport
from capanode.hardware import Machine
from capanode.sandbox.gpu import GpuDevice
from capanode.sandbox.probe import GpuTrial, IsolationReport
from capanode.sandbox.spawn import Program, Sandbox, SandboxedProcess
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
    assert settle_gpus(machine(), [CARD], report(GpuTrial(""))) == SettledGpus((CARD,))


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
    settled = settle_gpus(machine(), [CARD], report(GpuTrial(met)))
    assert settled.working == ()
    (failure,) = settled.failures
    assert failure.problem is problem
    assert words in failure.advice


def test_a_machine_without_a_gpu_has_none_and_nothing_failed() -> None:
    none = Machine("cpu", 2, GIB, GIB, "Linux", GpuReport((), None, "no GPU"), "13.0")
    assert settle_gpus(none, (), report(None)) == SettledGpus(())


def test_nothing_runs_on_the_processor_instead_without_leave() -> None:
    lost = DeviceFailure(DeviceProblem.DRIVER_LOST, "CUDA 999")
    with pytest.raises(GpuError, match=r"CUDA 999: .*nvidia_uvm.*--if-gpu-fails cpu"):
        require_leave(IfGpuFails.STOP, lost)
    require_leave(IfGpuFails.CPU, lost)


def test_a_torch_without_cuda_is_its_owners_choice() -> None:
    (failure,) = settle_gpus(machine(torch_cuda=None), (), report(None)).failures
    require_leave(IfGpuFails.STOP, failure)


class OneAnswer(Sandbox):
    """Starts nothing: what a trial says is in the channel already, by the UUID of its card."""

    answers: dict[str, bytes]

    def spawn(self, program: Program) -> SandboxedProcess:
        assert program.gpu is not None
        (uuid,) = program.gpu.uuids
        ours, theirs = socket.socketpair()
        theirs.sendall(self.answers[uuid])
        if self.answers[uuid]:
            theirs.close()
        held.append(theirs)
        popen = subprocess.Popen(["true"])
        return SandboxedProcess(popen, ours, os.open(os.devnull, os.O_RDONLY), None, None)


# The other ends of trials that say nothing: closed, they would have ended.
held: list[socket.socket] = []


def sandbox_with(answers: dict[str, bytes]) -> OneAnswer:
    sandbox = OneAnswer(IsolationTier.BWRAP)
    object.__setattr__(sandbox, "answers", answers)
    return sandbox


def test_of_several_cards_those_that_torch_computes_on_are_used() -> None:
    cards = [
        Gpu(f"card {name}", GIB, GIB, GpuDevice(name))
        for name in ("works", "too-old", "ended", "lies")
    ]
    old = b'{"problem": "card_too_old", "reason": "no kernel image is available"}\n'
    answers = {"works": b"{}\n", "too-old": old, "ended": b" ", "lies": b'{"problem": 7}\n'}
    settled = try_torch(sandbox_with(answers), cards)
    assert settled.working == (cards[0],)
    assert [failure.problem for failure in settled.failures] == [
        DeviceProblem.CARD_TOO_OLD,
        DeviceProblem.UNKNOWN,
        DeviceProblem.UNKNOWN,
    ]
    assert "card too-old (too-old): no kernel image" in settled.failures[0].reason


def test_a_card_on_which_nothing_answers_has_failed() -> None:
    card = Gpu("hung", GIB, GIB, GpuDevice("hung"))
    (failure,) = try_torch(sandbox_with({"hung": b""}), [card], within_s=0.01).failures
    assert failure.problem is DeviceProblem.CARD_FAILED
    held.pop().close()
