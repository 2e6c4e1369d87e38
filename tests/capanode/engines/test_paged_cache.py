"""The GPU's cache and attention on a CPU; `plain_varlen` stands in for the kernel."""

from pathlib import Path
from typing import Any

import pytest
import torch

from capanode.engines import causal_lm
from capanode.engines.attending import JobCache, next_attention, prompt_attention
from capanode.engines.attention import PrefillChunk
from capanode.engines.attention_rules import AttentionRules, LayerRule
from capanode.engines.base import ModelLoadError
from capanode.engines.cache_budget import paged_budget
from capanode.engines.causal_lm import CausalLM
from capanode.engines.decoder_config import DecoderConfig
from capanode.engines.families import read_decoder_config
from capanode.engines.kv_cache import CacheShape, KvCache
from capanode.engines.paged_cache import PAGE_TOKENS, PagedCache
from protocol.generation import GenerationInput
from tests.capanode.engines.tiny_models import LLAMA, Transcript, load, run, write_llama

CPU = torch.device("cpu")
CONTEXT = 6 * PAGE_TOKENS
GIB = 1024**3


def llama_8b() -> DecoderConfig:
    """Llama 3.1 8B."""
    changes = {
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 128_256,
        "max_position_embeddings": 131_072,
    }
    return read_decoder_config({**LLAMA, **changes})


def test_an_8b_model_on_24_gib_takes_a_prompt_of_16k_with_64_slots() -> None:
    weights_bytes = 8_030_261_248 * 2
    left = int((24 * GIB - weights_bytes) * 0.8)
    budget = paged_budget(llama_8b(), torch.bfloat16, 64, None, left)
    assert budget.shape.context_tokens > 16_384
    assert budget.shape.rows == 65
    assert budget.pages * PAGE_TOKENS * budget.shape.token_bytes <= left


def test_a_pool_without_a_page_to_spare_is_refused() -> None:
    with pytest.raises(ModelLoadError, match="page"):
        paged_budget(llama_8b(), torch.bfloat16, 1, None, PAGE_TOKENS * 131_072)


RULES = AttentionRules(
    4,
    (
        LayerRule(0.25),
        LayerRule(0.25, window_tokens=40),
        LayerRule(0.3, softcap=2.0),
        LayerRule(0.3, window_tokens=7, softcap=3.0),
    ),
)


def test_pages_and_rows_attend_alike() -> None:
    """Prompts in chunks over a page's end, then decoding: the same numbers from both caches."""
    generator = torch.Generator().manual_seed(1)
    shape = CacheShape(4, 4, 2, 3 * PAGE_TOKENS, 16, torch.float32)
    caches: tuple[JobCache, JobCache] = (
        KvCache(shape, device=CPU),
        PagedCache(shape, pages=10, device=CPU),
    )
    starts = {0: PAGE_TOKENS - 3, 1: 5}
    found: list[list[torch.Tensor]] = [[], []]
    for step in range(3):
        counts = {0: 70, 1: 30}
        chunks = [PrefillChunk(row, starts[row], counts[row]) for row in (0, 1)]
        if step == 0:
            chunks = [PrefillChunk(row, 0, starts[row]) for row in (0, 1)]
        tokens = sum(chunk.count for chunk in chunks)
        mixed = torch.randn((4, tokens + 2, 8, 16), generator=generator)
        rows = [chunk.row for chunk in chunks for _ in range(chunk.count)] + [3, 3]
        places = [chunk.start + n for chunk in chunks for n in range(chunk.count)] + [0, 0]
        for cache, numbers in zip(caches, found, strict=True):
            attention = prompt_attention(cache, chunks, rows, places, RULES)
            numbers += [attention(layer, part)[:tokens] for layer, part in enumerate(mixed)]
        if step:
            starts = {row: starts[row] + counts[row] for row in starts}
    for _ in range(3):
        lengths = [starts[row] + 1 for row in (0, 1)]
        mixed = torch.randn((4, 4, 8, 16), generator=generator)
        for cache, numbers in zip(caches, found, strict=True):
            attention = next_attention(cache, lengths, RULES)
            assert attention.fits(lengths)
            attention.set_positions(torch.tensor(lengths) - 1)
            numbers += [attention(layer, part)[:2] for layer, part in enumerate(mixed)]
        starts = {row: starts[row] + 1 for row in starts}
    torch.testing.assert_close(found[1], found[0], atol=2e-5, rtol=1e-4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("model"), max_position_embeddings=CONTEXT)


@pytest.fixture
def paged(monkeypatch: pytest.MonkeyPatch, folder: Path) -> CausalLM:
    """An engine that believes its device to be a GPU, with 12 pages for jobs."""
    return make_paged(monkeypatch, folder, pages=13)


def make_paged(monkeypatch: pytest.MonkeyPatch, folder: Path, *, pages: int) -> CausalLM:
    def budget(config: Any, dtype: Any, slots: int, *_: Any, **__: Any) -> Any:
        token_bytes = config.layers * 2 * config.kv_heads * config.head_dim * dtype.itemsize
        return paged_budget(config, dtype, slots, None, pages * PAGE_TOKENS * token_bytes)

    with monkeypatch.context() as patched:
        patched.setattr(causal_lm, "cache_budget", budget)
        return load(folder)


def text(count: int, *, seed: int = 0) -> tuple[int, ...]:
    return tuple((seed + place * place) % 251 for place in range(count))


def asked(tokens: tuple[int, ...], **options: Any) -> GenerationInput:
    plain: dict[str, Any] = {"max_tokens": 30, "temperature": 0.0, "ignore_eos": True}
    return GenerationInput(prompt_tokens=tokens, **{**plain, **options})


def answers(engine: CausalLM, inputs: list[GenerationInput]) -> Transcript:
    for number, job_input in enumerate(inputs):
        engine.submit(str(number), job_input)
    return run(engine)


def test_a_paged_engine_answers_as_one_with_rows(paged: CausalLM, folder: Path) -> None:
    inputs = [asked(text(40 + 150 * number, seed=number)) for number in range(4)]
    inputs.append(asked(text(300), prefix_tokens=(5, 6, 7), temperature=0.8, seed=4))
    expected, found = answers(load(folder), inputs), answers(paged, inputs)
    for number in range(len(inputs)):
        assert found.tokens(str(number)) == expected.tokens(str(number))


def test_jobs_that_outgrow_the_pool_wait_and_come_out_the_same(
    monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    tight = make_paged(monkeypatch, folder, pages=5)
    inputs = [asked(text(200 + 9 * n, seed=n), max_tokens=2 * PAGE_TOKENS) for n in range(3)]
    expected, found = answers(load(folder), inputs), answers(tight, inputs)
    for number in range(len(inputs)):
        assert found.tokens(str(number)) == expected.tokens(str(number))


def test_a_conversation_goes_on_behind_its_last_answer(paged: CausalLM, folder: Path) -> None:
    prompt = text(PAGE_TOKENS + 40)
    first = answers(paged, [asked(prompt, max_tokens=PAGE_TOKENS)]).tokens("0")
    second = asked((*prompt, *first, *text(20, seed=9)))
    found = answers(paged, [second])
    assert found.finished("0").units.cached_tokens == 2 * PAGE_TOKENS
    assert found.tokens("0") == answers(load(folder), [second]).tokens("0")


def test_jobs_that_begin_alike_list_the_same_pages(paged: CausalLM, folder: Path) -> None:
    system = text(3 * PAGE_TOKENS)
    inputs = [asked(system + text(9 + n, seed=n)) for n in range(1, 5)]
    answers(paged, inputs[:1])
    # Four jobs of four pages each fit into twelve only because they share three.
    found = answers(paged, inputs)
    assert found.finished("3").units.cached_tokens == 3 * PAGE_TOKENS
    expected = answers(load(folder), inputs)
    assert [found.tokens(str(n)) for n in range(4)] == [expected.tokens(str(n)) for n in range(4)]
