"""Jobs that begin alike: the later ones take over what the first has computed, bit for bit."""

from pathlib import Path
from typing import Any

import pytest

from capanode.engines.base import Started
from capanode.engines.causal_lm import PREFILL_CHUNK_TOKENS as PAGE
from capanode.engines.causal_lm import CausalLM
from capanode.engines.decoder import DecoderModel
from protocol.generation import GenerationInput
from tests.capanode.engines.tiny_models import load, run, write_llama

CONTEXT = 8 * PAGE
TOKEN_BYTES = 2 * 2 * 2 * 16 * 2  # of the tiny model in bfloat16


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tmp_path_factory.mktemp("model")
    return write_llama(where, dtype="bfloat16", max_position_embeddings=CONTEXT)


@pytest.fixture
def prefilled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tokens each pass over prompts has computed."""
    counts: list[int] = []
    plain = DecoderModel.prefill

    def counting(self: DecoderModel, chunks: Any, *args: Any, **options: Any) -> Any:
        counts.append(sum(len(ids) for _, ids in chunks))
        return plain(self, chunks, *args, **options)

    monkeypatch.setattr(DecoderModel, "prefill", counting)
    return counts


def text(count: int, *, seed: int = 0) -> tuple[int, ...]:
    return tuple((seed + place * place) % 251 for place in range(count))


def asked(tokens: tuple[int, ...], **options: Any) -> GenerationInput:
    plain: dict[str, Any] = {"max_tokens": 12, "temperature": 0.9, "seed": 3, "ignore_eos": True}
    return GenerationInput(prompt_tokens=tokens, **{**plain, **options})


def answers(engine: CausalLM, *inputs: GenerationInput) -> list[list[int]]:
    for number, job_input in enumerate(inputs):
        engine.submit(str(number), job_input)
    found = run(engine)
    return [found.tokens(str(number)) for number in range(len(inputs))]


def test_a_beginning_is_computed_once_and_the_answer_is_the_same(
    folder: Path, prefilled: list[int]
) -> None:
    system = text(3 * PAGE + 20)
    one, two = asked(system + text(40, seed=1)), asked(system + text(50, seed=2))
    fresh = [answers(load(folder), job_input) for job_input in (one, two)]
    prefilled.clear()
    engine = load(folder)
    assert [answers(engine, one), answers(engine, two)] == fresh
    assert sum(prefilled) == (3 * PAGE + 60) + 70


def cached(engine: CausalLM, job_input: GenerationInput) -> int:
    engine.submit("job", job_input)
    found = run(engine)
    started = found.of("job")[0]
    assert isinstance(started, Started)
    assert started.input_units.cached_tokens == found.finished("job").units.cached_tokens
    return started.input_units.cached_tokens


def test_what_was_kept_is_metered_and_other_salts_do_not_see_it(folder: Path) -> None:
    engine = load(folder)
    one, other = asked(text(300), cache_salt="one"), asked(text(300), cache_salt="other")
    assert [cached(engine, job_input) for job_input in (one, one, other)] == [0, 2 * PAGE, 0]


def test_the_last_token_of_a_prompt_is_computed_even_if_all_pages_are_kept(
    folder: Path, prefilled: list[int]
) -> None:
    engine = load(folder)
    whole = asked(text(2 * PAGE))
    assert answers(engine, whole) == answers(engine, whole)
    assert sum(prefilled) == 2 * PAGE + PAGE


def test_jobs_that_come_together_compute_their_beginning_once(
    folder: Path, prefilled: list[int]
) -> None:
    system = text(6 * PAGE)
    inputs = [asked(system + text(30, seed=seed)) for seed in range(3)]
    apart = [answers(load(folder), job_input)[0] for job_input in inputs]
    prefilled.clear()
    assert answers(load(folder), *inputs) == apart
    assert sum(prefilled) == 6 * PAGE + 3 * 30


def test_an_answer_that_goes_on_finds_its_prompt(folder: Path, prefilled: list[int]) -> None:
    engine = load(folder)
    whole = asked(text(2 * PAGE))
    (tokens,) = answers(engine, whole)
    prefilled.clear()
    rest = asked(text(2 * PAGE), prefix_tokens=tuple(tokens[:5]), max_tokens=7)
    assert answers(engine, rest) == [tokens[5:]]
    assert not prefilled


def test_a_job_that_scores_its_prompt_computes_all_of_it(
    folder: Path, prefilled: list[int]
) -> None:
    engine = load(folder)
    for job_input in (asked(text(3 * PAGE)), asked(text(3 * PAGE), prompt_logprobs=0)):
        prefilled.clear()
        answers(engine, job_input)
        assert sum(prefilled) == 3 * PAGE


def test_a_full_cache_forgets_beginnings_and_answers_alike(folder: Path) -> None:
    tight = load(folder, cache_bytes=(CONTEXT + 2 * PAGE) * TOKEN_BYTES)
    ample = load(folder)
    inputs = [asked(text(5 * PAGE + 9, seed=seed % 3), max_tokens=2 * PAGE) for seed in range(6)]
    assert answers(tight, *inputs) == answers(ample, *inputs)
