"""vLLM's engine in a real worker: a sandbox that is open while it starts and closed when it serves.
vLLM itself is a stand-in, and there is no GPU."""

import os
import random
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from capanode.engines.base import Completed, Failed, Produced, Started
from capanode.sandbox.errors import SandboxError
from capanode.sandbox.limits import limits_for_model, resident_bytes_of_all, with_open_start
from capanode.sandbox.opening import SandboxOpening
from capanode.sandbox.spawn import Program, Sandbox
from capanode.tasks import engine_of
from capanode.worker.jobs import open_job
from capanode.worker.spec import OPEN_LOAD_TIMEOUT_S, WorkerSpec
from capanode.worker.supervisor import RestartPolicy, WorkerStartError, WorkerSupervisor
from protocol.codec import encode
from protocol.errors import Code
from protocol.generation import GenerationInput
from protocol.messages import IsolationTier, Task
from tests.capanode.engines.vllm_makers import STAND_IN, write_model
from tests.capanode.sandbox_makers import (
    SMALL_LIMITS,
    TEST_PACKAGES,
    ask,
    ask_program,
    escape_program,
    model_folder,
    working_sandboxes,
)

BWRAP = [box for box in working_sandboxes() if box.tier is IsolationTier.BWRAP]
LANDLOCK = [box for box in working_sandboxes() if box.tier is IsolationTier.LANDLOCK]
needs_bwrap = pytest.mark.skipif(not BWRAP, reason="bubblewrap does not work here")
QUICK = RestartPolicy(first_pause_s=0.05, longest_pause_s=0.1, short_runs_max=1)


@pytest.fixture
def folder() -> Iterator[Path]:
    with model_folder() as path:
        yield path


def make_spec(folder: Path, behaviour: dict[str, Any]) -> WorkerSpec:
    write_model(folder, behaviour)
    for path in folder.iterdir():
        path.chmod(0o644)
    return WorkerSpec(
        engine=engine_of(Task.CAUSAL_LM, "LlamaForCausalLM", with_vllm=True),
        model_dir=folder,
        limits=with_open_start(limits_for_model(0, threads=1)),
        slots=2,
        threads=1,
        packages=(*TEST_PACKAGES, STAND_IN),
        load_timeout_s=OPEN_LOAD_TIMEOUT_S,
        opening=SandboxOpening.START,
    )


def open_program(folder: Path, **order: object) -> Program:
    program = escape_program(folder, with_open_start(SMALL_LIMITS), **order)
    return replace(program, opening=SandboxOpening.START)


@asynccontextmanager
async def running(spec: WorkerSpec) -> AsyncIterator[WorkerSupervisor]:
    worker = WorkerSupervisor(BWRAP[0], spec, rng=random.Random(1), policy=QUICK)
    with trio.fail_after(120):
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            yield worker
            nursery.cancel_scope.cancel()


async def run_job(worker: WorkerSupervisor, prompt: str) -> list[Any]:
    job_input = GenerationInput(max_tokens=5, prompt=prompt, ignore_eos=True)
    async with open_job(worker, "job", encode(job_input)) as events:
        return [event async for event in events]


@needs_bwrap
@pytest.mark.slow
async def test_vllm_answers_in_a_sandbox_that_closes_after_its_start(folder: Path) -> None:
    """Its start runs a program, listens on the loopback and leaves a process behind. The stand-in's
    jobs try the same, and meet the lock."""
    behaviour = {"starts_programs": True, "tries_again": "again"}
    async with running(make_spec(folder, behaviour)) as worker:
        assert worker.info is not None
        assert worker.info.profile.startswith("vllm/0.33.0")
        events = await run_job(worker, "ab")
        tried = await run_job(worker, "again")
    assert isinstance(events[0], Started)
    assert [len(e.token_ids) for e in events if isinstance(e, Produced)] == [1] * 5
    assert isinstance(events[-1], Completed)
    # One letter for each refusal: fork, a program, a socket, another filter, and no other process.
    assert "".join(e.text for e in tried if isinstance(e, Produced)) == "rrrrr"


@needs_bwrap
@pytest.mark.slow
async def test_a_gpu_that_is_full_ends_the_worker_with_that_reason(folder: Path) -> None:
    behaviour = {"raises": {"large": "CUDA out of memory. Tried to allocate 20.00 MiB"}}
    async with running(make_spec(folder, behaviour)) as worker:
        failed = (await run_job(worker, "large"))[-1]
        assert isinstance(failed, Failed)
        assert worker.last_ending is not None
        assert worker.last_ending.code is Code.OUT_OF_MEMORY


@needs_bwrap
@pytest.mark.slow
async def test_a_start_that_fails_says_why(folder: Path) -> None:
    spec = make_spec(folder, {})
    config = folder / "config.json"
    config.write_text(config.read_text().replace("llama", "unsupported"))
    worker = WorkerSupervisor(BWRAP[0], spec, rng=random.Random(1), policy=QUICK)
    with pytest.raises(WorkerStartError, match="not supported for now"):
        await worker.run()


@needs_bwrap
@pytest.mark.skipif(shutil.which("gcc") is None, reason="no compiler is installed here")
def test_the_systems_compiler_works_until_the_lock(folder: Path) -> None:
    answers = ask_program(BWRAP[0], open_program(folder, do="compile"))
    assert answers == {"before": 42, "after": "EPERM"}


@needs_bwrap
def test_a_closed_sandbox_shows_no_compiler(folder: Path) -> None:
    assert ask(BWRAP[0], folder, do="tools") == {"found": []}


@pytest.mark.skipif(not LANDLOCK, reason="Landlock does not work here")
def test_without_namespaces_no_sandbox_is_opened(folder: Path) -> None:
    program = Program("x", limits=SMALL_LIMITS, model_dir=folder, opening=SandboxOpening.START)
    with pytest.raises(SandboxError, match="only bubblewrap"):
        Sandbox(IsolationTier.LANDLOCK).spawn(program)


def test_memory_of_started_processes_counts() -> None:
    assert resident_bytes_of_all(os.getpid()) > 0
    assert resident_bytes_of_all(2**22 - 1) == 0
