"""What fits a machine and what it would earn, and the memory that a model needs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from capanode.models.catalog import load_catalog
from capanode.models.memory_need import (
    NO_CACHE,
    WORKSPACE_BYTES,
    CacheGeometry,
    cache_bytes,
    largest_context,
    memory_need,
)
from capanode.models.recommend import Basis, Measured, Recommendation, best, recommend
from capanode.models.recommend_here import measured_by, room_of
from capanode.models.store import ModelStore
from capanode.tasks import DECODERS
from protocol.offers import Hardware
from protocol.pricing import PriceSheet
from tests.capanode.model_makers import add_model

GIB = 1024**3
CARD = room_of(Hardware("cuda", "A card", 24 * GIB, 1), disk_free_bytes=500 * 10**9)
LAPTOP = room_of(Hardware("cpu", "A laptop", 8 * GIB, 1), disk_free_bytes=500 * 10**9)
CATALOG = load_catalog()


def by_name(found: list[Recommendation]) -> dict[str, Recommendation]:
    return {one.name: one for one in found}


def everything(**changes: Any) -> dict[str, Recommendation]:
    return by_name(recommend(CATALOG, replace(CARD, **changes), here={}, measured={}, prices={}))


# Memory


@pytest.mark.parametrize(
    ("name", "token_bytes"),
    # 2 x layers x heads of keys and values x numbers of a head x 2 bytes.
    [("llama-3.1-8b-instruct", 131_072), ("qwen2.5-7b-instruct", 57_344), ("qwen3-8b", 147_456)],
)
def test_a_kept_token_costs_what_the_configuration_says(name: str, token_bytes: int) -> None:
    entry = CATALOG.find_hub(name)
    assert entry is not None
    assert cache_bytes(entry.cache, 1) == token_bytes
    assert cache_bytes(entry.cache, 16_384) == 16_384 * token_bytes


def test_layers_with_a_window_keep_no_more_than_the_window() -> None:
    geometry = CacheGeometry(10, 2, 8, window_layers=6, window_tokens=100)
    assert cache_bytes(geometry, 100) == 10 * 100 * 64
    assert cache_bytes(geometry, 1_000) == (4 * 1_000 + 6 * 100) * 64


@given(
    st.builds(
        CacheGeometry,
        st.integers(1, 100),
        st.integers(1, 32),
        st.integers(32, 256),
        st.just(0),
        st.just(0),
    ),
    st.integers(0, 10**11),
    st.integers(1, 200_000),
    st.integers(0, 10**11),
)
def test_the_largest_context_fits_and_more_does_not(
    geometry: CacheGeometry, weight_bytes: int, context: int, memory_bytes: int
) -> None:
    found = largest_context(
        weight_bytes, geometry, context_tokens=context, memory_bytes=memory_bytes
    )
    if found:
        assert memory_need(weight_bytes, geometry, found) <= memory_bytes
    if found < context:
        assert memory_need(weight_bytes, geometry, found + 1_024) > memory_bytes


def test_a_model_without_a_cache_needs_its_weights_and_room_to_work() -> None:
    assert memory_need(100, NO_CACHE, 512) == 100 + WORKSPACE_BYTES


# The catalogue


def test_the_catalogue_names_what_people_ask_for() -> None:
    names = {entry.name for entry in CATALOG.hub}
    assert len(CATALOG.names) == len(set(CATALOG.names)) >= 30
    for family in ("llama-3", "qwen2.5", "qwen3", "gemma-2", "gemma-3", "mistral", "phi-4"):
        assert any(name.startswith(family) for name in names), family
    uses = {entry.use for entry in CATALOG.hub}
    assert uses == {"chat", "embed", "rerank"}
    for family in DECODERS:
        assert any(entry.architecture == family for entry in CATALOG.hub), family


def test_sizes_of_the_catalogue_are_those_of_its_parameters() -> None:
    widths = {"bf16": 2.0, "fp32": 4.0, "fp16": 2.0, "fp8": 1.1, "int4": 0.675}
    for entry in CATALOG.hub:
        assert entry.bytes == int(entry.parameters * widths[entry.quantization]), entry.name
        assert (entry.cache != NO_CACHE) == (entry.architecture in DECODERS), entry.name


# What fits


def test_a_24_gib_card_takes_models_of_8_to_14_billion_parameters_with_a_long_context() -> None:
    found = everything()
    for name in ("llama-3.1-8b-instruct", "qwen3-8b", "gemma-2-9b-it"):
        assert found[name].problem == "", name
    assert found["llama-3.1-8b-instruct"].context_tokens >= 16_384
    assert found["qwen3-14b-awq"].problem == ""
    assert found["qwen3-14b-awq"].context_tokens == 40_960
    assert found["qwen3-14b-fp8"].problem == ""
    assert "memory" in found["qwen3-14b"].problem
    assert "memory" in found["llama-3.3-70b-instruct"].problem


def test_a_laptop_takes_small_models() -> None:
    found = by_name(recommend(CATALOG, LAPTOP, here={}, measured={}, prices={}))
    assert found["llama-3.2-1b-instruct"].problem == ""
    assert found["bge-small-en-v1.5"].problem == ""
    assert "memory" in found["qwen3-8b"].problem


def test_what_no_engine_runs_and_what_the_disk_has_no_room_for_is_said() -> None:
    assert "no engine" in everything()["nomic-embed-text-v1.5"].problem
    assert "disk" in everything(disk_free_bytes=10**9)["qwen3-8b"].problem
    small_disk = replace(CARD, disk_free_bytes=10**9)
    found = recommend(CATALOG, small_disk, here={"qwen3-8b": "0" * 64}, measured={}, prices={})
    assert by_name(found)["qwen3-8b"].problem == "", "it is here already"


# What it earns


def test_what_runs_comes_first_and_earnings_decide() -> None:
    found = recommend(CATALOG, CARD, here={}, measured={"qwen3-8b": Measured(10**12)}, prices={})
    assert (found[0].name, found[0].basis) == ("qwen3-8b", Basis.MEASURED)
    problems = [bool(one.problem) for one in found]
    assert problems == sorted(problems)
    runs = [one.nano_per_hour for one in found if not one.problem]
    assert runs == sorted(runs, reverse=True)
    assert {one.basis for one in found[1:]} == {Basis.ESTIMATE}


def test_what_a_model_goes_for_in_the_market_replaces_what_others_ask() -> None:
    plain = by_name(recommend(CATALOG, CARD, here={}, measured={}, prices={}))["qwen3-8b"]
    # Public providers ask 0.08 for a model of that size: ten times that earns ten times as much.
    prices = {"qwen3-8b": PriceSheet(output_nano_per_mtok=800_000_000)}
    found = by_name(recommend(CATALOG, CARD, here={}, measured={}, prices=prices))["qwen3-8b"]
    assert (plain.basis, found.basis) == (Basis.ESTIMATE, Basis.MARKET_PRICE)
    assert found.nano_per_hour == pytest.approx(10 * plain.nano_per_hour, rel=1e-6)


def test_the_next_model_to_pull_is_not_here_and_not_gated() -> None:
    found = recommend(CATALOG, CARD, here={}, measured={}, prices={})
    first = best(found)
    assert first is not None
    assert not first.is_gated
    second = best(recommend(CATALOG, CARD, here={first.name: "0" * 64}, measured={}, prices={}))
    assert second is not None
    assert second.name != first.name
    assert best([]) is None


def test_measured_earnings_are_speed_times_price_of_what_brings_less(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    digest = add_model(store).digest
    model = {
        "name": "tiny",
        "digest": digest,
        "speed": {"prefill_tps": 1_000, "decode_tps": 50, "batched_tps": 100},
        "price": {
            "input_nano_per_mtok": 100_000_000,
            "output_nano_per_mtok": 2_000_000_000,
        },
    }
    status = {"models": [model, {**model, "digest": "0" * 64}]}
    # Input: 1,000/s x 1e8 / 1e6 = 1e5 nano a second; output: 100/s x 2e9 / 1e6 = 2e5. Half is sold.
    assert measured_by(status, store) == {"tiny": Measured(100_000 * 1_800)}
    assert measured_by({}, store) == {}
