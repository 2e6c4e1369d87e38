"""A tensor model from a folder to its price: converter, store, sandboxed worker, benchmark."""

import random
from pathlib import Path

import numpy as np
import pytest
import trio

from capanode.engines.base import Completed, EngineInfo, Produced, Started
from capanode.measurements import measure_tensors
from capanode.models.catalog import load_catalog
from capanode.models.library import pull
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
from tests.capanode.sandbox_makers import working_sandboxes
from tests.examples import example

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not working_sandboxes(), reason="no isolation works here"),
]


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
