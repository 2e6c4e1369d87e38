"""The transformers library inside every sandbox that works here."""

import random
from pathlib import Path

import pytest
import trio

from capanode.engines.base import Completed
from capanode.sandbox.limits import limits_for_model
from capanode.sandbox.spawn import Sandbox
from capanode.tasks import engine_of
from capanode.worker.jobs import open_job
from capanode.worker.spec import WorkerSpec
from capanode.worker.supervisor import WorkerSupervisor
from protocol.codec import encode
from protocol.generation import GenerationInput
from protocol.messages import Task
from tests.capanode.engines.test_transformers_lm import write_model
from tests.capanode.sandbox_makers import model_folder, sandbox_name, working_sandboxes

pytestmark = pytest.mark.skipif(not working_sandboxes(), reason="no isolation works here")


def readable(folder: Path) -> int:
    """The worker is another user; returns how many bytes the model has."""
    for path in folder.iterdir():
        path.chmod(0o644)
    return sum(path.stat().st_size for path in folder.iterdir())


@pytest.mark.slow
# The first that works: the others differ in nothing that the library sees.
@pytest.mark.parametrize("sandbox", working_sandboxes()[:1], ids=sandbox_name)
async def test_a_model_of_transformers_answers_in_the_sandbox(sandbox: Sandbox) -> None:
    with model_folder() as folder:
        write_model(folder, "gpt2")
        spec = WorkerSpec(
            engine=engine_of(Task.CAUSAL_LM, "GPT2LMHeadModel"),
            model_dir=folder,
            limits=limits_for_model(readable(folder), threads=1),
            slots=1,
            threads=1,
        )
        worker = WorkerSupervisor(sandbox, spec, rng=random.Random(1))
        job_input = encode(GenerationInput(max_tokens=4, prompt="ab", ignore_eos=True))
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                await nursery.start(worker.run)
                async with open_job(worker, "job", job_input) as events:
                    made = [event async for event in events]
                nursery.cancel_scope.cancel()
        assert isinstance(made[-1], Completed)
        assert made[-1].units.output_tokens == 4
