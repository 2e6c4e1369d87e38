"""What becomes of jobs when their worker ends: convicted, tried again alone, or told; and of the
worker. The process is scripted, time is virtual."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from capanode.engines.base import Completed, EngineEvent, EngineInfo, Failed, Produced, Started
from capanode.sandbox.spawn import Sandbox
from capanode.worker import supervisor as supervisor_module
from capanode.worker.allowance import RunTerms
from capanode.worker.commands import Cancel, Command, Start
from capanode.worker.crashes import STRIKES_MAX
from capanode.worker.frames import WorkerProtocolError
from capanode.worker.jobs import JobBook, WorkerExit, WorkerState
from capanode.worker.spec import WorkerSpec
from capanode.worker.supervisor import RestartPolicy, WorkerSupervisor
from protocol.errors import Code, RemoteProtocolError
from protocol.messages import IsolationTier, Task
from protocol.pricing import Units
from tests.capanode.test_supervisor import SPEC

INFO = EngineInfo(Task.CAUSAL_LM, 4, 100, "none")
POLICY = RestartPolicy(first_pause_s=1.0, short_runs_max=3)


class ScriptedProcess:
    """Stands for `WorkerProcess`: remembers what it was told, and answers as the test says."""

    all: list["ScriptedProcess"]

    def __init__(self, sandbox: Sandbox, spec: WorkerSpec, book: JobBook) -> None:
        self.book = book
        self.told: list[Command] = []
        self._over = trio.Event()
        self._ending = WorkerExit(
            Code.WORKER_CRASHED, "the worker was killed by SIGSEGV unexpectedly"
        )
        self.all.append(self)

    async def run(self, on_ready: Callable[[EngineInfo], None]) -> WorkerExit:
        await trio.sleep(0.1)
        on_ready(INFO)
        await self._over.wait()
        return self._ending

    def has_room_for(self, payload_bytes: int) -> bool:
        return True

    def send_nowait(self, command: Command) -> None:
        self.told.append(command)

    @property
    def has_jobs(self) -> list[str]:
        return [command.job_id for command in self.told if isinstance(command, Start)]

    def crash(self, code: Code = Code.WORKER_CRASHED) -> None:
        self._ending = WorkerExit(code, "the worker ended")
        self._over.set()

    def say(self, *events: EngineEvent) -> None:
        self.book.deliver(events)


class Play:
    """A supervised worker, its processes one after the other, and what each job heard."""

    def __init__(self, worker: WorkerSupervisor, processes: list[ScriptedProcess]) -> None:
        self.worker = worker
        self.processes = processes
        self.heard: dict[str, list[EngineEvent]] = {}

    @property
    def process(self) -> ScriptedProcess:
        return self.processes[-1]

    def state(self) -> WorkerState:
        return self.worker.state

    def submit(self, job_id: str, *, client: str = "alice", payload: bytes = b"") -> None:
        heard = self.heard[job_id] = []
        terms = RunTerms(log_id=job_id, client=client, output_tokens_max=10)
        self.worker.submit(job_id, payload or job_id.encode(), heard.append, terms=terms)

    def refusal(self, job_id: str, **how: Any) -> Code:
        with pytest.raises(RemoteProtocolError) as refusal:
            self.submit(job_id, **how)
        return refusal.value.code

    def end_of(self, job_id: str) -> Code | str | None:
        heard = self.heard[job_id]
        last = heard[-1] if heard else None
        if isinstance(last, Failed):
            return last.code
        return last.reason if isinstance(last, Completed) else None

    async def crash_and_restart(self, code: Code = Code.WORKER_CRASHED) -> None:
        count = len(self.processes)
        self.process.crash(code)
        # Longer than any pause, and than the next one takes to be ready.
        await trio.sleep(POLICY.longest_pause_s + 1)
        assert len(self.processes) == count + 1


def started(job_id: str) -> Started:
    return Started(job_id, Units(input_tokens=1))


def word(job_id: str) -> Produced:
    return Produced(job_id, (1,), "word ")


def finished(job_id: str) -> Completed:
    return Completed(job_id, "stop", Units(1, 1))


@asynccontextmanager
async def playing(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Play]:
    processes: list[ScriptedProcess] = []
    monkeypatch.setattr(ScriptedProcess, "all", processes, raising=False)
    monkeypatch.setattr(supervisor_module, "WorkerProcess", ScriptedProcess)
    worker = WorkerSupervisor(
        Sandbox(IsolationTier.NONE), SPEC, rng=random.Random(1), policy=POLICY
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        yield Play(worker, processes)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("code", [Code.WORKER_CRASHED, Code.WORKER_HUNG, Code.OUT_OF_MEMORY])
async def test_job_that_was_alone_is_convicted_and_known_again(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, code: Code
) -> None:
    async with playing(monkeypatch) as play:
        play.submit("bad", payload=b"poison")
        await play.crash_and_restart(code)
        assert play.end_of("bad") is Code.POISON_INPUT
        assert play.state() is WorkerState.READY
        assert play.refusal("again", client="bob", payload=b"poison") is Code.POISON_INPUT
        play.submit("good", client="bob")
        assert play.process.has_jobs == ["good"]


async def test_suspects_are_tried_one_at_a_time_and_the_innocent_hear_nothing_of_it(
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with playing(monkeypatch) as play:
        for job_id in ("streaming", "good", "bad", "fine"):
            play.submit(job_id, client=job_id)
        play.process.say(started("streaming"), word("streaming"), started("good"), started("bad"))
        await play.crash_and_restart()
        assert play.end_of("streaming") is Code.WORKER_CRASHED
        assert play.process.has_jobs == ["good"]
        assert play.state() is not WorkerState.READY
        assert play.refusal("new") is Code.MODEL_UNAVAILABLE
        play.process.say(started("good"), word("good"), finished("good"))
        assert play.process.has_jobs == ["good", "bad"]
        play.process.say(started("bad"))
        await play.crash_and_restart()
        assert play.end_of("bad") is Code.POISON_INPUT
        assert play.process.has_jobs == ["fine"]
        play.process.say(started("fine"), word("fine"))
        assert play.state() is WorkerState.READY
        play.process.say(finished("fine"))
        assert play.heard["good"] == [started("good"), word("good"), finished("good")]
        assert play.heard["fine"] == [started("fine"), word("fine"), finished("fine")]


async def test_suspect_that_crashes_beside_a_streaming_job_gets_another_trial_alone(
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with playing(monkeypatch) as play:
        play.submit("good", client="bob")
        play.submit("bad")
        await play.crash_and_restart()
        play.process.say(started("good"), word("good"))
        assert play.process.has_jobs == ["good", "bad"]
        await play.crash_and_restart()
        assert play.end_of("good") is Code.WORKER_CRASHED
        assert play.end_of("bad") is None
        assert play.process.has_jobs == ["bad"]
        await play.crash_and_restart()
        assert play.end_of("bad") is Code.POISON_INPUT


async def test_worker_cannot_answer_for_a_job_that_waits_for_its_trial(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with playing(monkeypatch) as play:
        play.submit("first")
        play.submit("second")
        await play.crash_and_restart()
        with pytest.raises(WorkerProtocolError, match="does not have"):
            play.process.say(started("second"))
        assert play.heard["second"] == []


@pytest.mark.parametrize("is_on_trial", [True, False])
async def test_suspect_may_be_cancelled(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock, is_on_trial: bool
) -> None:
    async with playing(monkeypatch) as play:
        play.submit("first")
        play.submit("second")
        await play.crash_and_restart()
        play.worker.cancel("first" if is_on_trial else "second")
        if is_on_trial:
            cancel, start = play.process.told[1:]
            assert cancel == Cancel("first")
            assert isinstance(start, Start)
            assert (start.job_id, start.payload) == ("second", b"second")
        else:
            play.process.say(started("first"), word("first"))
            assert play.process.has_jobs == ["first"]
            assert play.state() is WorkerState.READY


async def test_one_client_retires_no_model(
    monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    async with playing(monkeypatch) as play:
        for number in range(STRIKES_MAX):
            play.submit(f"bad{number}", client="mallory")
            await play.crash_and_restart()
            assert play.end_of(f"bad{number}") is Code.POISON_INPUT
        assert play.refusal("more", client="mallory") is Code.POISON_INPUT
        play.submit("good", client="bob")
        assert play.state() is WorkerState.READY


async def test_model_that_ends_with_every_clients_jobs_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with playing(monkeypatch) as play:
        ends = []
        for number in range(20):
            play.submit(f"job{number}", client=f"client{number}")
            play.process.crash()
            await trio.sleep(40)
            ends.append(play.end_of(f"job{number}"))
            if play.state() is WorkerState.UNAVAILABLE:
                break
        assert set(ends[:2]) == {Code.POISON_INPUT}
        assert set(ends[2:]) == {Code.WORKER_CRASHED}
        assert play.state() is WorkerState.UNAVAILABLE
        assert len(ends) <= 2 + POLICY.short_runs_max + 1


async def test_jobs_that_wait_for_their_trial_end_with_the_node(
    monkeypatch: pytest.MonkeyPatch,
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with playing(monkeypatch) as play:
        play.submit("first")
        play.submit("second")
        await play.crash_and_restart()
    assert play.end_of("first") is play.end_of("second") is Code.DRAINING
