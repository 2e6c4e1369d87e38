from dataclasses import replace
from pathlib import Path

from capanode.gpus import Gpu
from capanode.placement import memory_need, place_models
from capanode.sandbox.gpu import GpuDevice
from capanode.workers import ModelPlan
from protocol.ids import sha256_digest
from protocol.manifest import ModelFile, ModelManifest
from protocol.messages import Task

GIB = 1024**3


def plan(name: str, gib: float, *, task: Task = Task.CAUSAL_LM) -> ModelPlan:
    digest = sha256_digest(name.encode())
    file = ModelFile("model.safetensors", digest, round(gib * GIB))
    manifest = ModelManifest(name, task, "Fake", (file,), "bf16", "bf16", 128, "mit", "file:fake")
    return ModelPlan(name, digest, manifest, Path("/models") / name, slots=64, threads=1)


def gpu(name: str, gib: int, number: int) -> Gpu:
    return Gpu(name, gib * GIB, gib * GIB, GpuDevice(f"GPU-{number}", number))


# As NVML may list them: the card that jobs run on is not the first.
UNLIKE = (gpu("RTX 3060", 12, 0), gpu("RTX 3060", 12, 1), gpu("RTX 3090", 24, 2))


def test_without_a_gpu_plans_stay_on_the_processor() -> None:
    plans = (plan("m", 1),)
    assert place_models(plans, ()).plans == plans


def test_the_card_that_is_named_is_the_one_that_runs_the_model() -> None:
    placement = place_models([plan("llama-8b", 15)], UNLIKE)
    (placed,) = placement.plans
    assert placed.gpu == UNLIKE[2]
    assert placement.gpus == (UNLIKE[2],)
    assert placed.promise is not None
    assert placed.promise.device == "GPU-2"


def test_several_models_take_several_cards() -> None:
    plans = [plan("a", 15), plan("b", 8), plan("c", 8), plan("e", 0.1, task=Task.EMBEDDING)]
    placement = place_models(plans, UNLIKE)
    assert [made.name for made in placement.plans] == ["a", "b", "c", "e"]
    cards = [made.gpu.device.uuid for made in placement.plans if made.gpu]
    assert cards[0] == "GPU-2"
    assert set(cards[1:3]) == {"GPU-0", "GPU-1"}
    assert len(placement.gpus) == 3


def test_memory_that_other_programs_hold_is_not_promised() -> None:
    busy = replace(UNLIKE[2], free_bytes=4 * GIB)
    (placed,) = place_models([plan("m", 6)], (UNLIKE[0], busy)).plans
    assert placed.gpu == UNLIKE[0]


def test_a_model_that_fits_nowhere_is_refused_by_name() -> None:
    placement = place_models([plan("llama-70b", 140), plan("small", 1)], UNLIKE)
    assert [made.name for made in placement.plans] == ["small"]
    ((refused, error),) = placement.refused
    assert refused.name == "llama-70b"
    assert "GiB" in str(error)


def test_an_eight_billion_model_keeps_a_cache_worth_having_on_a_card_of_24_gib() -> None:
    """Its cache takes 128 KiB a token: 16k tokens of it are 2 GiB."""
    (placed,) = place_models([plan("llama-8b", 15)], (UNLIKE[2],)).plans
    assert placed.promise is not None
    assert placed.promise.cache_bytes >= 2 * GIB


def test_only_generation_needs_a_cache() -> None:
    assert memory_need(plan("e", 1, task=Task.EMBEDDING)).cache_max_bytes == 0
    assert memory_need(plan("m", 1)).cache_min_bytes > 0
