"""Drafts change how many steps an answer takes, and nothing of the answer."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from capanode.engines import causal_lm
from capanode.engines.base import Produced
from capanode.engines.causal_lm import CausalLM
from capanode.engines.kv_cache import CacheShape, KvCache
from protocol.generation import (
    FormatKind,
    GenerationInput,
    OutputFormat,
    TokenBias,
)
from tests.capanode.engines.tiny_models import Transcript, load, run, write_llama

# Few tokens, so that what stood before is a fair guess.
FEW = tuple(TokenBias(byte, 30.0) for byte in b"ab")
WORDS = (*FEW, *(TokenBias(byte, 30.0) for byte in "é".encode()))
SCHEMA = {"type": "array", "items": {"enum": ["aaaa", "aabb"]}, "minItems": 5, "maxItems": 9}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "cold": {"temperature": 0.2},
    "sampled": {"logit_bias": FEW},
    "filters": {"logit_bias": FEW, "top_p": 0.9, "top_k": 3, "min_p": 0.01},
    "penalties": {
        "logit_bias": FEW,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.02,
        "repetition_penalty": 1.1,
    },
    "characters and stop strings": {"logit_bias": WORDS, "stop": ("aaaaaaé", "bbbbbbb")},
    "late stop string": {"logit_bias": FEW, "stop": ("aa",), "min_tokens": 30},
    "stop tokens": {"stop_token_ids": (ord("b"),), "logit_bias": (*FEW[:1], TokenBias(98, 24.0))},
    "least tokens": {"temperature": 0.0, "min_tokens": 30, "ignore_eos": False},
    "schema": {"format": OutputFormat(FormatKind.JSON_SCHEMA, json.dumps(SCHEMA))},
    "expression": {"format": OutputFormat(FormatKind.REGEX, "((ab){2,4}c|abad){4,9}")},
    "scores": {"logprobs": 2, "logit_bias": FEW},
    "prompt scores": {"prompt_logprobs": 0, "temperature": 0.0},
}
MAX_TOKENS = 70


def load_both(folder: Path, **options: Any) -> tuple[CausalLM, CausalLM]:
    return load(folder, drafts=False, **options), load(folder, **options)


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> tuple[CausalLM, CausalLM]:
    """Without drafts, and with them."""
    folder = write_llama(tmp_path_factory.mktemp("model"), dtype="bfloat16")
    return load_both(folder, slots=6)


def asked(kind: str, seed: int, **options: Any) -> GenerationInput:
    rng = random.Random(f"{kind} {seed}")
    prompt = tuple(rng.choice(b"ab") for _ in range(rng.randrange(1, 40)))
    base = {"max_tokens": MAX_TOKENS, "temperature": 1.0, "ignore_eos": True, "seed": seed}
    return GenerationInput(prompt_tokens=prompt, **{**base, **KINDS[kind], **options})


def told(engine: CausalLM, inputs: Sequence[GenerationInput], *, gap: int = 0) -> Transcript:
    """All that an engine says of these jobs, which come `gap` steps one after another."""
    waiting = list(enumerate(inputs))[::-1]

    def arrive(step: int) -> None:
        while waiting and (step >= gap * (len(inputs) - len(waiting)) or engine.is_idle):
            number, job_input = waiting.pop()
            engine.submit(str(number), job_input)

    arrive(0)
    return run(engine, after_step=arrive)


def steps_of(engine: CausalLM, job_input: GenerationInput) -> int:
    count = 0

    def note(step: int) -> None:
        nonlocal count
        count = step

    engine.submit("job", job_input)
    run(engine, after_step=note)
    return count


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_with_drafts_is_the_one_without(
    engines: tuple[CausalLM, CausalLM], kind: str
) -> None:
    plain, drafting = engines
    for seed in (1, 2):
        job_input = asked(kind, seed)
        assert told(drafting, [job_input]).events == told(plain, [job_input]).events


@pytest.mark.parametrize(("seed", "gap"), [(1, 0), (2, 3)])
def test_answers_side_by_side_with_drafts_are_those_alone_without(
    engines: tuple[CausalLM, CausalLM], seed: int, gap: int
) -> None:
    plain, drafting = engines
    kinds = random.Random(seed).sample(sorted(KINDS), len(KINDS))
    inputs = [asked(kind, seed, max_tokens=20 + 9 * at) for at, kind in enumerate(kinds)]
    together = told(drafting, inputs, gap=gap)
    for number, job_input in enumerate(inputs):
        plain.submit(str(number), job_input)
        assert together.of(str(number)) == run(plain).events


@pytest.mark.parametrize("kind", KINDS)
def test_an_answer_goes_on_from_any_of_its_tokens_with_or_without_drafts(
    engines: tuple[CausalLM, CausalLM], kind: str
) -> None:
    plain, drafting = engines
    tokens = told(plain, [asked(kind, 3)]).tokens("0")
    places = random.Random(kind).sample(range(1, len(tokens)), min(4, len(tokens) - 1))
    rests = [
        asked(kind, 3, prefix_tokens=tuple(tokens[:place]), max_tokens=MAX_TOKENS - place)
        for place in places
    ]
    found = told(drafting, rests)
    for number, place in enumerate(places):
        assert tokens[:place] + found.tokens(str(number)) == tokens
    assert sorted(map(repr, found.events)) == sorted(map(repr, told(plain, rests).events))


@pytest.mark.parametrize("max_tokens", range(20, 32))
def test_an_answer_ends_in_the_middle_of_what_was_drafted(
    engines: tuple[CausalLM, CausalLM], max_tokens: int
) -> None:
    plain, drafting = engines
    job_input = asked("sampled", 1, logit_bias=FEW[:1], max_tokens=max_tokens)
    found = told(drafting, [job_input])
    assert found.events == told(plain, [job_input]).events
    assert found.finished("0").units.output_tokens == len(found.tokens("0")) == max_tokens


def test_an_answer_that_repeats_itself_takes_few_steps(
    engines: tuple[CausalLM, CausalLM],
) -> None:
    plain, drafting = engines
    job_input = asked("sampled", 1, logit_bias=FEW[:1], max_tokens=200)
    assert steps_of(plain, job_input) == 200
    assert steps_of(drafting, job_input) < 40


def test_the_cache_holds_what_it_would_hold_without_drafts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    caches: list[KvCache] = []

    class Seen(KvCache):
        def __init__(self, shape: CacheShape, *, device: torch.device) -> None:
            super().__init__(shape, device=device)
            caches.append(self)

    monkeypatch.setattr(causal_lm, "KvCache", Seen)
    plain, drafting = load_both(write_llama(tmp_path, dtype="bfloat16"))
    for engine in (plain, drafting):
        engine.submit("job", asked("sampled", 5, max_tokens=200))
    for target in (60, 90):
        seen = held = steps = 0
        while seen < target:
            seen += produced(drafting)
            steps += 1
        while held < seen:
            held += produced(plain)
        assert steps < held == seen
        assert torch.equal(rows_of(caches[0]), rows_of(caches[1]))
    for engine, cache in zip((plain, drafting), caches, strict=True):
        engine.cancel("job")
        assert not rows_of(cache).any()


def produced(engine: CausalLM) -> int:
    """How many tokens a step gives."""
    return sum(isinstance(event, Produced) for event in engine.step())


def rows_of(cache: KvCache) -> torch.Tensor:
    """All keys and values of the rows that jobs may have: the last one is for padding."""
    return torch.stack([layer[:-1] for layer in cache.layers])


def test_drafts_take_no_more_of_the_cache_than_there_is(tmp_path: Path) -> None:
    token_bytes = 2 * 2 * 2 * 16 * 4
    options = {"context_tokens": 192, "cache_bytes": 200 * token_bytes}
    plain, drafting = load_both(write_llama(tmp_path), **options)
    inputs = [asked("sampled", seed, logit_bias=FEW[:1], max_tokens=150) for seed in range(3)]
    expected = told(plain, inputs)
    found = told(drafting, inputs)
    for number in range(3):
        assert found.of(str(number)) == expected.of(str(number))


def test_a_full_context_ends_an_answer_with_drafts(tmp_path: Path) -> None:
    plain, drafting = load_both(write_llama(tmp_path), context_tokens=64)
    job_input = asked("sampled", 1, logit_bias=FEW[:1], max_tokens=500)
    assert told(drafting, [job_input]).events == told(plain, [job_input]).events
