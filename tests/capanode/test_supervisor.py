"""When a worker is started again and when not, under virtual time and without a process."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from capanode.device_problems import DeviceFailure, DeviceProblem
from capanode.engines.base import EngineInfo
from capanode.sandbox.errors import SandboxError
from capanode.sandbox.limits import limits_for_model
from capanode.sandbox.spawn import Program, Sandbox, SandboxedProcess
from capanode.worker import supervisor
from capanode.worker.jobs import JobBook, WorkerExit, WorkerState
from capanode.worker.spec import EngineOptions, WorkerSpec, parse_engine_options
from capanode.worker.supervisor import RestartPolicy, WorkerStartError, WorkerSupervisor
from protocol.errors import Code, RemoteProtocolError
from protocol.messages import IsolationTier, Task

SPEC = WorkerSpec("no.such:Engine", Path("/models/small"), limits_for_model(0), slots=1, threads=1)


class BrokenSandbox(Sandbox):
    """Never starts anything, and remembers when it was asked."""

    asked_at: list[float]

    def spawn(self, program: Program) -> SandboxedProcess:
        self.asked_at.append(trio.current_time())
        raise SandboxError("the sandbox could not be started: no space left")


def broken_sandbox() -> BrokenSandbox:
    sandbox = BrokenSandbox(IsolationTier.NONE)
    object.__setattr__(sandbox, "asked_at", [])
    return sandbox


def make(sandbox: Sandbox, policy: RestartPolicy, states: list[WorkerState]) -> WorkerSupervisor:
    return WorkerSupervisor(
        sandbox, SPEC, rng=random.Random(7), policy=policy, on_state=states.append
    )


async def test_pauses_double_and_then_it_gives_up(autojump_clock: trio.testing.MockClock) -> None:
    sandbox, states = broken_sandbox(), list[WorkerState]()
    worker = make(sandbox, RestartPolicy(short_runs_max=4, longest_pause_s=2.0), states)
    with pytest.raises(WorkerStartError, match=r"small does not start: .* no space left"):
        await worker.run()
    assert len(sandbox.asked_at) == 5
    pauses = [
        after - before
        for before, after in zip(sandbox.asked_at, sandbox.asked_at[1:], strict=False)
    ]
    for pause_s, whole_s in zip(pauses, [0.5, 1.0, 2.0, 2.0], strict=True):
        assert whole_s / 2 <= pause_s <= whole_s
    assert worker.state is WorkerState.UNAVAILABLE
    assert states[-1] is WorkerState.UNAVAILABLE
    assert WorkerState.RESTARTING in states


async def test_same_seed_pauses_the_same(autojump_clock: trio.testing.MockClock) -> None:
    asked = []
    for _ in range(2):
        sandbox = broken_sandbox()
        with pytest.raises(WorkerStartError):
            await make(sandbox, RestartPolicy(), []).run()
        asked.append([at - sandbox.asked_at[0] for at in sandbox.asked_at])
    assert asked[0] == pytest.approx(asked[1])


async def test_jobs_are_refused_while_it_is_not_ready(
    autojump_clock: trio.testing.MockClock,
) -> None:
    worker = make(broken_sandbox(), RestartPolicy(first_pause_s=8.0), [])
    async with trio.open_nursery() as nursery:
        nursery.start_soon(worker.run)
        await trio.sleep(0.001)
        with pytest.raises(RemoteProtocolError) as refusal:
            worker.submit("job", b"", lambda event: None)
        assert refusal.value.code is Code.MODEL_UNAVAILABLE
        assert 3_000 < (refusal.value.retry_after_ms or 0) <= 8_000
        worker.cancel("job")
        nursery.cancel_scope.cancel()
    assert worker.state is WorkerState.STOPPED


def test_run_that_lasted_counts_as_a_fresh_start() -> None:
    policy = RestartPolicy()
    rng = random.Random(1)
    assert policy.pause_s(1, rng) <= 0.5
    assert policy.pause_s(50, rng) <= policy.longest_pause_s


def test_engine_options_survive_the_command_line() -> None:
    options = EngineOptions("module:Class", 8, 2)
    assert parse_engine_options(options.to_json()) == options


def test_program_names_the_model_by_its_place_only() -> None:
    program = SPEC.program()
    assert "/models" not in str(program.arguments)
    assert program.module == "capanode.worker.main"


class FailingCard:
    """Runs in place of a process: `endings` say how each run ends, and whether it was ready."""

    def __init__(self, runs: list[tuple[bool, WorkerExit | None]]) -> None:
        self._runs = iter(runs)

    def make(self, sandbox: Sandbox, spec: WorkerSpec, book: JobBook) -> "FailingCard":
        return self

    async def run(self, on_ready: Callable[[EngineInfo], None]) -> WorkerExit:
        becomes_ready, ending = next(self._runs)
        if becomes_ready:
            on_ready(EngineInfo(Task.CAUSAL_LM, 1, 1_024, "bf16"))
        await trio.sleep(10.0)
        if ending is None:
            await trio.sleep_forever()
        assert ending is not None
        return ending


LOST = WorkerExit(
    Code.MODEL_UNAVAILABLE,
    "the worker has no GPU",
    DeviceFailure(DeviceProblem.DRIVER_LOST, "CUDA 999: unknown error"),
)


async def test_a_model_whose_gpu_is_gone_waits_for_it_and_comes_back(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long that takes: the card's loss is no fault of the worker's."""
    card = FailingCard([(True, LOST), *[(False, LOST)] * 9, (True, None)])
    monkeypatch.setattr(supervisor, "WorkerProcess", card.make)
    states: list[WorkerState] = []
    worker = make(broken_sandbox(), RestartPolicy(short_runs_max=2), states)
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        await trio.sleep(20.0)
        assert states[-1] is WorkerState.DEVICE_LOST
        with pytest.raises(RemoteProtocolError) as refusal:
            worker.submit("job", b"", lambda event: None)
        assert refusal.value.code is Code.MODEL_UNAVAILABLE
        assert worker.last_ending == LOST
        await trio.sleep(600.0)
        nursery.cancel_scope.cancel()
    # Withdrawn once and offered once again, not at every look at the card.
    assert states == [
        WorkerState.READY,
        WorkerState.DEVICE_LOST,
        WorkerState.READY,
        WorkerState.STOPPED,
    ]


async def test_a_model_that_never_had_its_gpu_is_given_up_with_the_drivers_reason(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "WorkerProcess", FailingCard([(False, LOST)]).make)
    worker = make(broken_sandbox(), RestartPolicy(), [])
    with pytest.raises(WorkerStartError, match="has no GPU"):
        await worker.run()
    assert worker.state is WorkerState.UNAVAILABLE
