import random
from dataclasses import replace
from pathlib import Path

import pytest

from capanode.gpus import Gpu
from capanode.memory_ledger import CONTEXT_BYTES
from capanode.placement import ModelPlacement, memory_need, place_models, place_on_processor
from capanode.sandbox.gpu import GpuDevice
from capanode.settings import EngineWish
from capanode.workers import ModelPlan
from protocol.ids import sha256_digest
from protocol.manifest import ModelFile, ModelManifest
from protocol.messages import Task

GIB = 1024**3


def plan(
    name: str,
    gib: float,
    *,
    task: Task = Task.CAUSAL_LM,
    architecture: str = "LlamaForCausalLM",
    wish: EngineWish | None = None,
) -> ModelPlan:
    digest = sha256_digest(name.encode())
    file = ModelFile("model.safetensors", digest, round(gib * GIB))
    manifest = ModelManifest(
        name, task, architecture, (file,), "bf16", "bf16", 128, "mit", "file:fake"
    )
    return ModelPlan(name, digest, manifest, Path("/models") / name, 64, 1, wish=wish)


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
    assert placed.gpus == (UNLIKE[2],)
    assert placement.gpus == (UNLIKE[2],)
    assert placed.promise is not None
    assert placed.promise.device == "GPU-2"


def test_several_models_take_several_cards() -> None:
    plans = [plan("a", 15), plan("b", 8), plan("c", 8), plan("e", 0.1, task=Task.EMBEDDING)]
    placement = place_models(plans, UNLIKE)
    assert [made.name for made in placement.plans] == ["a", "b", "c", "e"]
    cards = [gpu.device.uuid for made in placement.plans for gpu in made.gpus]
    assert cards[0] == "GPU-2"
    assert set(cards[1:3]) == {"GPU-0", "GPU-1"}
    assert len(placement.gpus) == 3


def test_memory_that_other_programs_hold_is_not_promised() -> None:
    busy = replace(UNLIKE[2], free_bytes=4 * GIB)
    (placed,) = place_models([plan("m", 6)], (UNLIKE[0], busy)).plans
    assert placed.gpus == (UNLIKE[0],)


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


def cold(placement: ModelPlacement) -> list[str]:
    return [made.name for made in placement.plans if made.is_cold]


def test_a_model_without_room_beside_the_others_is_cold() -> None:
    card = (UNLIKE[2],)
    placement = place_models([plan("a", 15), plan("b", 14), plan("c", 1)], card)
    assert cold(placement) == ["b"]
    assert placement.refused == ()
    (room,) = placement.room.values()
    for made in placement.plans:
        assert made.gpus == (UNLIKE[2],)
        assert made.promise is not None
        assert made.footprint is not None
        assert made.footprint.bytes == made.promise.bytes <= room
    off = place_models([plan("a", 15), plan("b", 14)], card, load_on_demand=False)
    assert [refused.name for refused, _ in off.refused] == ["b"]


def test_models_on_cards_that_hold_all_of_theirs_are_loaded_for_good() -> None:
    placement = place_models([plan("a", 19), plan("b", 18), plan("c", 8)], UNLIKE)
    assert cold(placement) == ["b"]
    footprints = {made.name: made.footprint for made in placement.plans}
    assert footprints["c"] is None
    assert set(placement.room) == {"GPU-2"}


def test_a_model_to_keep_is_loaded_before_larger_ones() -> None:
    kept = replace(plan("small", 6), keep_loaded=True)
    placement = place_models([plan("large", 15), kept], (UNLIKE[2],))
    assert cold(placement) == []
    assert [refused.name for refused, _ in placement.refused] == ["large"]
    plans = [plan("b", 1), replace(plan("a", 1), keep_loaded=True), plan("c", 20)]
    tight = place_models(plans, (UNLIKE[2],), load_on_demand=True)
    assert "a" not in cold(tight)


def test_the_processor_loads_what_the_machine_holds_in_the_order_of_the_owner() -> None:
    plans = [plan("a", 1), plan("b", 1), plan("c", 1)]
    room = 2 * (CONTEXT_BYTES + 3 * GIB // 2)
    placement = place_on_processor(plans, room, is_owners_limit=False)
    assert cold(placement) == ["c"]
    kept = [plans[0], plans[1], replace(plans[2], keep_loaded=True)]
    assert cold(place_on_processor(kept, room, is_owners_limit=False)) == ["b"]
    assert cold(place_on_processor(plans, 2 * room, is_owners_limit=False)) == []
    assert place_on_processor(plans, 2 * room, is_owners_limit=False).plans == tuple(plans)


def test_a_limit_of_the_owner_refuses_and_an_estimate_only_unloads_the_others() -> None:
    plans = [plan("small", 1), plan("large", 50)]
    limited = place_on_processor(plans, 8 * GIB, is_owners_limit=True)
    ((refused, error),) = limited.refused
    assert refused.name == "large"
    assert "memory_max_gib" in str(error)
    estimated = place_on_processor(plans, 8 * GIB, is_owners_limit=False)
    assert cold(estimated) == ["large"]
    assert estimated.plans[1].footprint is not None
    assert estimated.plans[1].footprint.bytes == 8 * GIB


@pytest.mark.parametrize("seed", range(30))
def test_every_model_that_is_placed_fits_when_all_others_that_may_have_left(seed: int) -> None:
    rng = random.Random(seed)
    plans = [
        replace(plan(f"m{number}", rng.uniform(0.1, 22)), keep_loaded=rng.random() < 0.2)
        for number in range(rng.randint(1, 8))
    ]
    for placement in (
        place_models(plans, UNLIKE),
        place_on_processor(plans, 24 * GIB, is_owners_limit=True),
        place_on_processor(plans, 24 * GIB, is_owners_limit=False),
    ):
        for device, room in placement.room.items():
            prints = [made.footprint for made in placement.plans]
            assert all(one.bytes <= room for one in prints if one and one.device == device)
            hot = [made.footprint for made in placement.plans if not made.is_cold]
            assert sum(one.bytes for one in hot if one and one.device == device) <= room
        names = {made.name for made in placement.plans} | {m.name for m, _ in placement.refused}
        assert names == {made.name for made in plans}


ALIKE = tuple(gpu("RTX 3090", 24, number) for number in range(5))
SMALLER = gpu("RTX 3060", 12, 9)


def test_a_model_too_large_for_one_card_takes_as_few_alike_as_hold_it_with_vllm() -> None:
    placement = place_models([plan("m", 30), plan("small", 4)], (*ALIKE, SMALLER), has_vllm=True)
    large, small = placement.plans
    assert (len(large.gpus), large.with_vllm) == (2, True)
    assert {gpu.name for gpu in large.gpus} == {"RTX 3090"}
    assert (len(small.gpus), small.with_vllm) == (1, False)
    assert large.promise is not None
    assert large.promise.allocated_bytes < 24 * GIB
    (huge,) = place_models([plan("m", 70)], ALIKE, has_vllm=True).plans
    assert huge.gpus == ALIKE[:4]


def test_cards_are_shared_by_vllm_only() -> None:
    for plans, has_vllm in (
        ([plan("m", 30)], False),
        ([plan("m", 30, wish=EngineWish.OWN)], True),
        ([plan("m", 30, task=Task.EMBEDDING)], True),
    ):
        placement = place_models(plans, ALIKE, has_vllm=has_vllm)
        assert placement.plans == ()
        assert "GiB" in str(placement.refused[0][1])


def test_instances_of_one_card_share_no_model() -> None:
    device = GpuDevice("MIG-1", 0, capability_minors=(3, 4))
    instances = tuple(
        replace(card, device=replace(device, uuid=f"MIG-{number}"))
        for number, card in enumerate(ALIKE)
    )
    assert place_models([plan("m", 30)], instances, has_vllm=True).plans == ()


def test_a_model_on_several_cards_stays_and_others_swap_beside_it() -> None:
    plans = [plan("shared", 30), plan("a", 15), plan("b", 14)]
    placement = place_models(plans, ALIKE[:3], has_vllm=True)
    shared, *others = placement.plans
    assert (len(shared.gpus), shared.keep_loaded, shared.footprint) == (2, True, None)
    (card,) = {gpu.device.uuid for made in others for gpu in made.gpus}
    assert card not in {gpu.device.uuid for gpu in shared.gpus}
    assert cold(placement) == ["b"]
    assert set(placement.room) == {card}
