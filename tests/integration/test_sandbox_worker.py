"""A real worker in every sandbox that works here: what it is, how it ends, how it comes back."""

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
import trio

from capanode.device_problems import DeviceProblem
from capanode.engines.base import Completed, EngineEvent, Failed, Produced, Started
from capanode.gpu_trial import try_torch
from capanode.gpus import Gpu
from capanode.sandbox.gpu import GpuDevice
from capanode.sandbox.limits import Limits, limits_for_model
from capanode.sandbox.spawn import Sandbox
from capanode.worker.allowance import RunTerms
from capanode.worker.jobs import WorkerState, open_job
from capanode.worker.spec import GpuShare, WorkerSpec
from capanode.worker.supervisor import RestartPolicy, WorkerStartError, WorkerSupervisor
from protocol.codec import encode
from protocol.errors import Code, RemoteProtocolError
from protocol.generation import GenerationInput
from tests.capanode.sandbox_makers import (
    REPOSITORY,
    SMALL_LIMITS,
    TEST_PACKAGES,
    command_as_ordinary_user,
    escape_program,
    model_folder,
    sandbox_name,
    working_sandboxes,
)
from tests.capanode.stand_in_driver import installed_driver

pytestmark = pytest.mark.skipif(not working_sandboxes(), reason="no isolation works here")

QUICK = RestartPolicy(first_pause_s=0.05, longest_pause_s=0.1, short_runs_max=3)
MIB = 1 << 20
# As long as a worker may get no turn where other tests keep all cores busy.
BUSY_S = 1.5

Running = Callable[..., AbstractAsyncContextManager[WorkerSupervisor]]


@pytest.fixture(params=working_sandboxes(), ids=sandbox_name)
def sandbox(request: pytest.FixtureRequest) -> Sandbox:
    value = request.param
    assert isinstance(value, Sandbox)
    return value


@pytest.fixture
def model() -> Iterator[Path]:
    with model_folder() as folder:
        yield folder


def make_spec(model_dir: Path, limits: Limits = SMALL_LIMITS, **settings: float) -> WorkerSpec:
    spec = WorkerSpec(
        engine="tests.capanode.fault_engine:FaultEngine",
        model_dir=model_dir,
        limits=limits,
        slots=1,
        threads=1,
        packages=TEST_PACKAGES,
    )
    return replace(spec, **settings)  # type: ignore[arg-type]


@asynccontextmanager
async def running(sandbox: Sandbox, spec: WorkerSpec) -> AsyncIterator[WorkerSupervisor]:
    worker = WorkerSupervisor(sandbox, spec, rng=random.Random(1), policy=QUICK)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            yield worker
            nursery.cancel_scope.cancel()


def payload(prompt: str) -> bytes:
    return encode(GenerationInput(max_tokens=8, prompt=prompt))


async def run_job(worker: WorkerSupervisor, prompt: str, job_id: str = "job") -> list[EngineEvent]:
    async with open_job(worker, job_id, payload(prompt)) as events:
        return [event async for event in events]


async def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - other processes set no trio.Event
        await trio.sleep(0.005)


async def wait_ready(worker: WorkerSupervisor) -> None:
    await wait_until(lambda: worker.state is WorkerState.READY)


def last_failure(events: list[EngineEvent]) -> Failed:
    assert isinstance(events[-1], Failed)
    return events[-1]


def is_alive(pid: int) -> bool:
    """A process that is dead but not yet waited for by its new parent counts as dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def test_job_streams_its_answer(sandbox: Sandbox, model: Path) -> None:
    async with running(sandbox, make_spec(model)) as worker:
        events = await run_job(worker, "one two three")
    assert isinstance(events[0], Started)
    assert "".join(e.text for e in events if isinstance(e, Produced)) == "one two three "
    assert isinstance(events[-1], Completed)
    assert (events[-1].reason, events[-1].units.output_tokens) == ("stop", 3)


def test_worker_is_unprivileged_in_the_eyes_of_the_host(sandbox: Sandbox, model: Path) -> None:
    process = sandbox.spawn(escape_program(model, SMALL_LIMITS, do="sleep"))
    try:
        assert process.channel.recv(100)
        pid = process.find_program_pid()
        assert pid is not None
        status = Path(f"/proc/{pid}/status").read_text()
        nice = os.getpriority(os.PRIO_PROCESS, pid)
    finally:
        process.kill()
        process.popen.wait()
        process.close()
    assert nice == SMALL_LIMITS.nice
    fields = dict(line.split(":\t") for line in status.splitlines())
    assert "0" not in fields["Uid"].split()
    assert "0" not in fields["Gid"].split()
    assert fields["Groups"].split() in ([], [str(os.getegid())]) or os.geteuid() != 0
    assert int(fields["CapEff"], 16) == int(fields["CapPrm"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")


async def test_outputs_larger_than_a_header_arrive_whole(sandbox: Sandbox, model: Path) -> None:
    async with running(sandbox, make_spec(model)) as worker:
        events = await run_job(worker, "blob")
    assert isinstance(events[1], Produced)
    assert events[1].data == bytes(2 * MIB)


async def test_inputs_larger_than_the_socket_arrive_whole(sandbox: Sandbox, model: Path) -> None:
    async with running(sandbox, make_spec(model)) as worker, trio.open_nursery() as nursery:
        answers: list[list[EngineEvent]] = []

        async def send(number: int) -> None:
            answers.append(await run_job(worker, "w" * (7 * MIB) + " end", f"job{number}"))

        for number in range(3):
            nursery.start_soon(send, number)
    # An event with so long a text is more than a worker may say: the bound shows that it arrived.
    assert len(answers) == 3
    assert {last_failure(events).code for events in answers} == {Code.WORKER_CRASHED}


async def test_cancel_frees_the_slot_at_once(sandbox: Sandbox, model: Path) -> None:
    async with running(sandbox, make_spec(model)) as worker:
        async with open_job(worker, "endless", payload("forever")) as events:
            async for event in events:
                if isinstance(event, Produced):
                    break
        assert worker.live_jobs == 0
        assert isinstance((await run_job(worker, "next"))[-1], Completed)
        assert worker.last_ending is None


@pytest.mark.parametrize(
    ("prompt", "code"), [("panic", Code.INVALID_INPUT), ("too long", Code.PROMPT_TOO_LONG)]
)
async def test_bad_input_fails_its_own_job_only(
    sandbox: Sandbox, model: Path, prompt: str, code: Code
) -> None:
    async with running(sandbox, make_spec(model)) as worker:
        assert last_failure(await run_job(worker, prompt)).code is code
        assert isinstance((await run_job(worker, "next"))[-1], Completed)
        assert worker.last_ending is None


async def test_malformed_payload_is_the_clients_mistake(sandbox: Sandbox, model: Path) -> None:
    async with (
        running(sandbox, make_spec(model)) as worker,
        open_job(worker, "job", b"\xc1") as events,
    ):
        failure = last_failure([event async for event in events])
    assert failure.code is Code.INVALID_INPUT


@pytest.mark.parametrize("fault", ["crash", "segfault", "raise"])
async def test_crash_fails_live_jobs_and_the_next_one_works(
    sandbox: Sandbox, model: Path, fault: str
) -> None:
    async with (
        running(sandbox, make_spec(model, slots=2)) as worker,
        open_job(worker, "streaming", payload("forever")) as events,
    ):
        while not isinstance(await anext(events), Produced):
            pass
        assert last_failure(await run_job(worker, fault)).code is Code.WORKER_CRASHED
        assert last_failure([event async for event in events]).code is Code.WORKER_CRASHED
        await wait_ready(worker)
        assert isinstance((await run_job(worker, "next"))[-1], Completed)


async def test_input_that_ends_the_worker_is_its_clients_fault_and_refused_from_then_on(
    sandbox: Sandbox, model: Path
) -> None:
    terms = RunTerms(client="alice")
    async with running(sandbox, make_spec(model)) as worker:
        async with open_job(worker, "job", payload("segfault"), terms=terms) as events:
            assert last_failure([event async for event in events]).code is Code.POISON_INPUT
        await wait_ready(worker)
        with pytest.raises(RemoteProtocolError) as refusal:
            worker.submit("again", payload("segfault"), lambda event: None, terms=terms)
        assert refusal.value.code is Code.POISON_INPUT
        assert isinstance((await run_job(worker, "next"))[-1], Completed)


async def test_no_new_jobs_while_it_restarts(sandbox: Sandbox, model: Path) -> None:
    async with running(sandbox, make_spec(model)) as worker:
        await run_job(worker, "crash")
        with pytest.raises(RemoteProtocolError) as refusal:
            await run_job(worker, "next")
        assert refusal.value.code is Code.MODEL_UNAVAILABLE
        assert refusal.value.retry_after_ms is not None


async def test_hang_is_noticed(sandbox: Sandbox, model: Path) -> None:
    async with running(sandbox, make_spec(model, hang_after_s=BUSY_S)) as worker:
        assert last_failure(await run_job(worker, "hang")).code is Code.WORKER_HUNG
        await wait_ready(worker)
        assert isinstance((await run_job(worker, "next"))[-1], Completed)


async def test_long_job_is_no_hang(sandbox: Sandbox, model: Path) -> None:
    async with running(sandbox, make_spec(model, hang_after_s=BUSY_S)) as worker:
        with trio.move_on_after(2 * BUSY_S):
            await run_job(worker, "forever")
        assert worker.last_ending is None


async def test_memory_bomb_meets_the_kernels_limit(sandbox: Sandbox, model: Path) -> None:
    limits = replace(SMALL_LIMITS, address_space_bytes=700 * MIB)
    async with running(sandbox, make_spec(model, limits)) as worker:
        assert last_failure(await run_job(worker, "bomb")).code is Code.OUT_OF_MEMORY
        assert worker.last_ending is not None
        assert "ran out" in worker.last_ending.message


async def test_memory_bomb_meets_the_watchdog(sandbox: Sandbox, model: Path) -> None:
    limits = replace(SMALL_LIMITS, memory_bytes=300 * MIB, address_space_bytes=None)
    async with running(sandbox, make_spec(model, limits)) as worker:
        assert last_failure(await run_job(worker, "bomb")).code is Code.OUT_OF_MEMORY
        assert worker.last_ending is not None
        assert "more than 300 MiB" in worker.last_ending.message


async def test_flood_of_events_ends_the_job_not_the_worker(sandbox: Sandbox, model: Path) -> None:
    async with running(sandbox, make_spec(model)) as worker:
        async with open_job(worker, "job", payload("flood")) as events:
            await wait_until(lambda: events.has_ended)
            failure = last_failure([event async for event in events])
        assert failure.code is Code.BUSY
        assert isinstance((await run_job(worker, "next"))[-1], Completed)


async def test_worker_that_answers_with_more_than_was_leased_is_ended(
    sandbox: Sandbox, model: Path
) -> None:
    async with running(sandbox, make_spec(model)) as worker:
        terms = RunTerms(output_tokens_max=3)
        async with open_job(worker, "job", payload("forever"), terms=terms) as events:
            seen = [event async for event in events]
        assert last_failure(seen).code is Code.WORKER_CRASHED
        assert sum(isinstance(event, Produced) for event in seen) == 3
        assert worker.last_ending is not None
        assert "more than 3 tokens" in worker.last_ending.message


async def test_worker_that_talks_without_a_job_is_ended(sandbox: Sandbox) -> None:
    with model_folder("talks to itself") as model:
        worker = WorkerSupervisor(
            sandbox, make_spec(model), rng=random.Random(1), policy=replace(QUICK, short_runs_max=1)
        )
        # It may begin before it is ready.
        with trio.fail_after(30), contextlib.suppress(WorkerStartError):
            await worker.run()
    assert worker.state is WorkerState.UNAVAILABLE
    assert worker.last_ending is not None
    assert "misbehaved" in worker.last_ending.message


@pytest.mark.parametrize(
    ("behaviour", "timeout_s", "words"),
    [
        ("fails to load", 10.0, "config.json makes no sense"),
        ("exits while it loads", 10.0, "status 3 while it loaded"),
        ("hangs while it loads", 0.5, "did not load within"),
    ],
)
async def test_model_that_does_not_load_is_given_up(
    sandbox: Sandbox, behaviour: str, timeout_s: float, words: str
) -> None:
    with model_folder(behaviour) as model:
        spec = make_spec(model, load_timeout_s=timeout_s)
        policy = replace(QUICK, short_runs_max=1)
        worker = WorkerSupervisor(sandbox, spec, rng=random.Random(1), policy=policy)
        with pytest.raises(WorkerStartError, match=words), trio.fail_after(30):
            await worker.run()
    assert worker.state is WorkerState.UNAVAILABLE


@pytest.mark.parametrize(
    ("driver_code", "words"),
    [(999, "CUDA 999.*nvidia_uvm"), (0, "not compiled with CUDA.*capanode setup")],
)
async def test_worker_that_cannot_have_its_gpu_says_why_and_computes_nowhere_else(
    sandbox: Sandbox,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    driver_code: int,
    words: str,
) -> None:
    """With a stand-in driver that does not start, and with one that does but a torch that has no
    CUDA."""
    if torch.version.cuda is not None and driver_code == 0:
        pytest.skip("this torch has CUDA and finds out more about the stand-in")
    share = GpuShare((GpuDevice("GPU-stand-in"),))
    limits = limits_for_model(0, gpu=True)
    with installed_driver(driver_code) as folder:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
        spec = replace(make_spec(model, limits), gpu=share)
        worker = WorkerSupervisor(sandbox, spec, rng=random.Random(1), policy=QUICK)
        with pytest.raises(WorkerStartError, match=words), trio.fail_after(30):
            await worker.run()
    assert worker.last_ending is not None
    assert worker.last_ending.device is not None
    assert worker.info is None


def test_a_gpu_that_torch_cannot_compute_on_is_known_before_any_model_loads(
    sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = Gpu("stand-in", 1 << 30, 1 << 30, GpuDevice("GPU-stand-in"))
    with installed_driver(999) as folder:
        monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
        settled = try_torch(sandbox, [card])
    assert settled.working == ()
    (failure,) = settled.failures
    assert failure.problem is DeviceProblem.DRIVER_LOST
    assert "CUDA 999" in failure.reason


async def test_crash_loop_ends_in_unavailable(sandbox: Sandbox, model: Path) -> None:
    async with running(sandbox, make_spec(model)) as worker:
        for _ in range(QUICK.short_runs_max + 1):
            await wait_ready(worker)
            await run_job(worker, "crash")
        assert worker.state is WorkerState.UNAVAILABLE
        with pytest.raises(RemoteProtocolError) as refusal:
            await run_job(worker, "next")
        assert refusal.value.code is Code.MODEL_UNAVAILABLE


async def test_stop_leaves_no_process_and_no_descriptor(sandbox: Sandbox, model: Path) -> None:
    # A market of other tests may run beside this one, as children of the same process.
    neighbours = set(psutil.Process().children(recursive=True))
    before = len(os.listdir("/proc/self/fd"))
    async with running(sandbox, make_spec(model)) as worker:
        await run_job(worker, "one")
        children = set(psutil.Process().children(recursive=True)) - neighbours
        assert children
    assert not any(is_alive(child.pid) for child in children)
    assert worker.state is WorkerState.STOPPED
    # trio keeps none of ours; its own wake-up descriptors exist before and after.
    assert len(os.listdir("/proc/self/fd")) <= before


NODE = """
import json, os, sys, time
from pathlib import Path
from tests.capanode.sandbox_makers import *
box = Sandbox(IsolationTier(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2] else None)
process = box.spawn(escape_program(Path(sys.argv[3]), SMALL_LIMITS, do="sleep"))
assert process.channel.recv(100)
print(process.popen.pid, process.find_program_pid(), flush=True)
time.sleep(60)
"""


def test_worker_dies_with_a_node_that_is_killed(sandbox: Sandbox, model: Path) -> None:
    node = subprocess.Popen(
        [sys.executable, "-c", NODE, sandbox.tier, str(sandbox.bwrap or ""), str(model)],
        stdout=subprocess.PIPE,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    with node:
        assert node.stdout is not None
        pids = [int(word) for word in node.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(is_alive, pids))
        node.send_signal(signal.SIGKILL)
    deadline_s = time.monotonic() + 30
    while any(map(is_alive, pids)):
        assert time.monotonic() < deadline_s
        time.sleep(0.005)


# What depends on who starts the worker: its confinement, limits and end. The rest is its protocol.
AS_ORDINARY_USER = (
    "escape or streams or unprivileged or memory or crash_fails or descriptor or dies"
)


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="the whole run is an ordinary user's already")
def test_the_sandbox_holds_for_a_node_that_is_not_root() -> None:
    environment = {
        "PATH": os.environ.get("PATH", ""),
        "HOME": "/nonexistent",
        "USER": "ordinary",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    arguments = ["-m", "pytest", "-p", "no:cacheprovider", "-k", AS_ORDINARY_USER]
    arguments += [f"tests/integration/test_sandbox_{part}.py" for part in ("escape", "worker")]
    plan_fd = os.memfd_create("plan")
    command, plan = command_as_ordinary_user(arguments, environment, plan_fd)
    os.write(plan_fd, plan)
    os.lseek(plan_fd, 0, os.SEEK_SET)
    try:
        result = subprocess.run(
            command,
            pass_fds=(plan_fd,),
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        os.close(plan_fd)
    assert result.returncode == 0, result.stdout + result.stderr
    assert " passed" in result.stdout
    assert "no isolation works here" not in result.stdout
