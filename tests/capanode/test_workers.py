from dataclasses import replace
from pathlib import Path

import pytest

from capanode.errors import NothingToServeError
from capanode.gpus import Gpu, GpuReport
from capanode.hardware import Machine
from capanode.models.errors import UnknownModelError, UnsafeModelError
from capanode.models.store import ModelStore
from capanode.sandbox.gpu import GpuDevice
from capanode.sandbox.limits import limits_for_model
from capanode.sandbox.opening import SandboxOpening
from capanode.settings import EngineWish, ModelSettings
from capanode.tasks import NODE_TASKS
from capanode.worker.spec import LOAD_TIMEOUT_S, OPEN_LOAD_TIMEOUT_S, WorkerSpec
from capanode.workers import (
    GPU_SLOTS,
    MODELS_MAX,
    THREADS_MAX,
    ModelPlan,
    plan_models,
    worker_spec,
)
from protocol.ids import Digest, sha256_digest
from protocol.manifest import ModelFile, ModelManifest
from protocol.messages import Task
from protocol.pricing import PriceSheet

MACHINE = Machine("cpu", 2, 8, 8, "Linux", GpuReport((), None, "none"), None)


def add_model(
    store: ModelStore, name: str, *, task: Task = Task.CAUSAL_LM, architecture: str = "Fake"
) -> Digest:
    data = name.encode()
    file = ModelFile("config.json", sha256_digest(data), len(data))
    manifest = ModelManifest(
        name, task, architecture, (file,), "bf16", "bf16", 128, "mit", "file:fake"
    )
    with store.scratch() as scratch:
        (scratch / "config.json").write_bytes(data)
        return store.add(scratch, manifest, name=name).digest


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    return ModelStore(tmp_path / "models")


def test_all_models_of_the_store_are_served_if_none_is_listed(store: ModelStore) -> None:
    add_model(store, "a-model")
    add_model(store, "b-model", task=Task.EMBEDDING)
    plans = plan_models((), store, MACHINE, gpu=False)
    assert [(plan.name, plan.slots, plan.threads, plan.price) for plan in plans] == [
        ("a-model", NODE_TASKS[Task.CAUSAL_LM].cpu_slots, 2, None),
        ("b-model", NODE_TASKS[Task.EMBEDDING].cpu_slots, 2, None),
    ]


def test_what_the_operator_says_wins(store: ModelStore) -> None:
    add_model(store, "a-model")
    add_model(store, "b-model")
    price = PriceSheet(request_nano=5)
    listed = (ModelSettings("b-model", slots=3, threads=1, price=price),)
    (plan,) = plan_models(listed, store, MACHINE, gpu=False)
    assert (plan.name, plan.slots, plan.threads, plan.price) == ("b-model", 3, 1, price)


def test_a_gpu_gets_more_slots_and_a_large_machine_not_all_its_threads(store: ModelStore) -> None:
    add_model(store, "a-model")
    large = Machine("cpu", 256, 8, 8, "Linux", GpuReport((), None, "none"), None)
    (plan,) = plan_models((), store, large, gpu=True)
    assert (plan.slots, plan.threads) == (GPU_SLOTS, THREADS_MAX)


def test_one_model_under_two_names_is_served_once(store: ModelStore) -> None:
    digest = add_model(store, "a-model")
    store.set_name("alias", digest)
    (plan,) = plan_models((), store, MACHINE, gpu=False)
    assert plan.name == "a-model"
    (named_by_digest,) = plan_models((ModelSettings(digest),), store, MACHINE, gpu=False)
    assert named_by_digest.name == "a-model"


def test_a_model_that_is_code_is_planned_only_where_that_is_allowed(store: ModelStore) -> None:
    add_model(store, "program", task=Task.TENSOR, architecture="TensorExport")
    with pytest.raises(UnsafeModelError, match="allow_code_models"):
        plan_models((), store, MACHINE, gpu=False)
    (plan,) = plan_models((), store, MACHINE, gpu=False, allow_code=True)
    assert plan.name == "program"


def test_nothing_to_serve_says_how_to_get_something(store: ModelStore) -> None:
    with pytest.raises(NothingToServeError, match="capanode models pull"):
        plan_models((), store, MACHINE, gpu=False)
    with pytest.raises(UnknownModelError, match="missing"):
        plan_models((ModelSettings("missing"),), store, MACHINE, gpu=False)
    many = tuple(ModelSettings(f"m{number}") for number in range(MODELS_MAX + 1))
    with pytest.raises(NothingToServeError, match="at most"):
        plan_models(many, store, MACHINE, gpu=False)


def spec_of(plan: ModelPlan) -> WorkerSpec:
    return worker_spec(plan, nice=5)


def test_vllm_starts_in_an_open_sandbox_with_room_and_time_to_compile(store: ModelStore) -> None:
    add_model(store, "a-model")
    (plan,) = plan_models(
        (ModelSettings("a-model", engine=EngineWish.VLLM),), store, MACHINE, gpu=True
    )
    assert plan.wish is EngineWish.VLLM
    cards = tuple(Gpu("card", 8, 8, GpuDevice(f"GPU-{number}")) for number in range(2))
    one, two = (spec_of(replace(plan, with_vllm=True, gpus=cards[:count])) for count in (1, 2))
    assert (one.opening, two.opening) == (SandboxOpening.START, SandboxOpening.GROUP)
    assert one.engine.endswith(":VllmLM")
    assert one.load_timeout_s == OPEN_LOAD_TIMEOUT_S
    usual = limits_for_model(plan.bytes, gpu=True)
    assert one.limits.scratch_bytes > usual.scratch_bytes
    assert one.limits.memory_bytes < two.limits.memory_bytes
    assert two.gpu is not None
    assert [device.uuid for device in two.gpu.devices] == ["GPU-0", "GPU-1"]


def test_every_other_engine_starts_in_a_closed_sandbox(store: ModelStore) -> None:
    add_model(store, "a-model")
    (plan,) = plan_models((), store, MACHINE, gpu=False)
    spec = spec_of(plan)
    assert (spec.opening, spec.load_timeout_s, spec.gpu) == (
        SandboxOpening.CLOSED,
        LOAD_TIMEOUT_S,
        None,
    )
    assert spec.engine.endswith(":CausalLM")
