"""A tensor model from a folder to its price: converter, store, sandboxed worker, benchmark."""

import io
import random
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trio

from capanode.engines.base import Completed, EngineInfo, Produced, Started
from capanode.measurements import measure_tensors
from capanode.models.catalog import load_catalog
from capanode.models.errors import UnsafeModelError
from capanode.models.library import PullOptions, pull
from capanode.models.store import ModelStore
from capanode.pricing_policy import propose_price
from capanode.sandbox.limits import limits_for_model
from capanode.tasks import NODE_TASKS
from capanode.worker.jobs import open_job
from capanode.worker.spec import WorkerSpec
from capanode.worker.supervisor import WorkerSupervisor
from protocol.codec import decode, encode
from protocol.messages import Task
from protocol.money import NANO_PER_CREDIT
from protocol.pricing import Units
from protocol.tensors import Datatype, NamedTensor, TensorInput, TensorOutput
from tests.capanode.engines.test_tensor import write_program
from tests.capanode.sandbox_makers import working_sandboxes
from tests.examples import example

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not working_sandboxes(), reason="no isolation works here"),
]


class Command:
    """Pickled, it leaves a mark where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        attempt = f"try: open({str(self.mark)!r}, 'x')\nexcept OSError: pass"
        sample = "((__import__('torch').zeros(4, 3),), {})"
        return eval, (f"(exec({attempt!r}), {sample})[1]",)


def plant(program: Path, mark: Path) -> None:
    """Put code into a program, as its maker could."""
    with zipfile.ZipFile(program) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    hidden = io.BytesIO()
    torch.save(Command(mark), hidden)
    with zipfile.ZipFile(program, "w") as archive:
        for name, data in parts.items():
            is_sample = name.endswith("sample_inputs/model.pt")
            archive.writestr(name, hidden.getvalue() if is_sample else data)


async def test_a_program_runs_in_the_sandbox_only_and_only_if_that_is_allowed(
    tmp_path: Path,
) -> None:
    folder, mark = write_program(tmp_path / "program"), tmp_path / "mark"
    plant(folder / "model.pt2", mark)
    store = ModelStore(tmp_path / "store")
    with pytest.raises(UnsafeModelError, match="allow_code_models"):
        pull(store, load_catalog(), f"file:{folder}", name="program")
    allowed = PullOptions(allow_code=True)
    stored = pull(store, load_catalog(), f"file:{folder}", name="program", options=allowed)
    assert stored.manifest.architecture == "TensorExport"
    spec = WorkerSpec(
        engine=NODE_TASKS[Task.TENSOR].engine,
        model_dir=stored.path,
        limits=limits_for_model(1_000_000, gpu=False, threads=1),
        slots=8,
        threads=1,
    )
    worker = WorkerSupervisor(working_sandboxes()[0], spec, rng=random.Random(1))
    rows = np.ones((2, 3), "<f4")
    tensor = NamedTensor("x", Datatype.FP32, rows.shape, rows.tobytes())
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            await nursery.start(worker.run)
            async with open_job(worker, "job", encode(TensorInput((tensor,)))) as events:
                answered = [event async for event in events]
            nursery.cancel_scope.cancel()
    (produced,) = [event for event in answered if isinstance(event, Produced)]
    (values,) = decode(TensorOutput, produced.data).outputs
    assert np.frombuffer(values.data, "<f4").tolist() == [2, 2, 2, 3] * 2
    assert not mark.exists(), "its code ran where it could reach this folder"


async def test_a_trained_model_is_added_served_measured_and_asked(tmp_path: Path) -> None:
    diagnosis = example("diagnosis")
    model = diagnosis.train(tmp_path / "diagnosis", trees=8)
    store = ModelStore(tmp_path / "store")
    stored = pull(store, load_catalog(), f"file:{tmp_path / 'diagnosis'}", name="diagnosis")
    assert (stored.manifest.task, stored.manifest.architecture) == (Task.TENSOR, "TensorTrees")
    spec = WorkerSpec(
        engine=NODE_TASKS[Task.TENSOR].engine,
        model_dir=stored.path,
        limits=limits_for_model(1_000_000, gpu=False, threads=1),
        slots=8,
        threads=1,
    )
    worker = WorkerSupervisor(working_sandboxes()[0], spec, rng=random.Random(1))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            info = await nursery.start(worker.run)
            assert isinstance(info, EngineInfo)
            assert info.signature is not None
            assert info.signature.inputs[0].shape == (-1, 30)
            speed = await measure_tensors(worker, info)
            price = propose_price(Task.TENSOR, speed, hourly_nano=NANO_PER_CREDIT)
            assert price.tensor_nano_per_kelement > 0
            _, records, _, _ = diagnosis.split()
            rows = records.astype("<f4")
            tensor = NamedTensor("record", Datatype.FP32, rows.shape, rows.tobytes())
            async with open_job(worker, "job", encode(TensorInput((tensor,)))) as events:
                started, produced, completed = [event async for event in events]
            nursery.cancel_scope.cancel()
    units = Units(tensor_elements=rows.size)
    assert started == Started("job", units)
    assert completed == Completed("job", "complete", units)
    assert isinstance(produced, Produced)
    chances, _ = decode(TensorOutput, produced.data).outputs
    found = np.frombuffer(chances.data, "<f4").reshape(chances.shape)
    assert found == pytest.approx(model.predict_proba(rows), abs=1e-6)
