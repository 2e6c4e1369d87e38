"""What a client may ask of sampling, scores and ends, on a tiny random model."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from capanode.engines import generation
from capanode.engines.base import Completed, Failed, Produced, Started
from capanode.engines.causal_lm import CHECKED_CHUNK_TOKENS, CausalLM
from capanode.engines.logit_rules import LogitRules
from capanode.worker.allowance import Allowance, RunTerms
from protocol.codec import decode
from protocol.errors import Code
from protocol.generation import (
    GAP_MAX,
    ChatMessage,
    FormatKind,
    GenerationInput,
    OutputFormat,
    TokenBias,
    TokenScore,
    TokenScores,
    TokensOutput,
)
from protocol.pricing import Units
from tests.capanode.engines.tiny_models import END, USER, Transcript, load, run, write_llama

PROMPT = tuple(b"What is it?")


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> CausalLM:
    return load(write_llama(tmp_path_factory.mktemp("model")))


def ask(engine: CausalLM, **options: Any) -> Transcript:
    options = {"max_tokens": 12, "prompt_tokens": PROMPT, "ignore_eos": True, **options}
    engine.submit("job", GenerationInput(**options))
    return run(engine)


def scores_of(transcript: Transcript, *, is_prompt: bool = False) -> list[TokenScore]:
    blocks = [decode(TokenScores, e.data) for e in transcript.produced("job") if e.data]
    return [score for block in blocks if block.is_prompt is is_prompt for score in block.tokens]


def test_a_bias_makes_a_token_certain_or_impossible(engine: CausalLM) -> None:
    certain = ask(engine, logit_bias=(TokenBias(65, 100.0),), temperature=1.0)
    assert certain.text("job") == "A" * 12
    free = ask(engine, temperature=0.0).tokens("job")
    without = ask(engine, temperature=0.0, logit_bias=(TokenBias(free[0], -100.0),)).tokens("job")
    assert free[0] not in without


def test_penalties_and_biases_change_logits_as_the_page_says() -> None:
    job_input = GenerationInput(
        max_tokens=1,
        prompt="x",
        presence_penalty=0.5,
        frequency_penalty=0.25,
        repetition_penalty=2.0,
        logit_bias=(TokenBias(3, -7.0), TokenBias(5, 1.5), TokenBias(100, 9.0)),
    )
    rules = LogitRules(job_input, None, prompt=[1, 2], vocab=6, ends=frozenset())
    for token in (3, 3, 4):
        rules.note(token, b"")
    logits = torch.tensor([1.0, 4.0, -4.0, 8.0, 0.0, 1.0])
    rules.apply(logits)
    three = 8.0 / 2 - 0.5 - 2 * 0.25 - 7.0
    assert logits.tolist() == [1.0, 2.0, -8.0, three, -0.5 - 0.25, 2.5]


def test_a_penalized_answer_repeats_itself_less(engine: CausalLM) -> None:
    plain = ask(engine, temperature=0.0, max_tokens=40).tokens("job")
    found = ask(engine, temperature=0.0, max_tokens=40, repetition_penalty=10.0).tokens("job")
    assert len(set(found)) > len(set(plain))


def test_a_stop_token_ends_the_answer_and_is_not_part_of_it(engine: CausalLM) -> None:
    free = ask(engine, seed=1).tokens("job")
    place = next(i for i, token in enumerate(free) if i and token not in free[:i])
    stopped = ask(engine, seed=1, stop_token_ids=(free[place],))
    assert stopped.tokens("job") == free[:place]
    assert stopped.finished("job").reason == "stop"
    assert stopped.finished("job").end_token == free[place]


def test_an_answer_says_which_stop_string_ended_it_and_keeps_it_if_asked(
    engine: CausalLM,
) -> None:
    bias = (TokenBias(65, 100.0),)
    cut = ask(engine, logit_bias=bias, stop=("B", "AAA", "AA"))
    assert (cut.text("job"), cut.finished("job").end_stop) == ("", 2)
    kept = ask(engine, logit_bias=bias, stop=("B", "AAA"), includes_stop=True)
    assert (kept.text("job"), kept.finished("job").end_stop) == ("AAA", 1)
    assert ask(engine, logit_bias=bias, stop=("B",)).finished("job").end_stop is None


def test_an_answer_has_its_least_tokens_before_anything_ends_it(engine: CausalLM) -> None:
    free = ask(engine, temperature=0.0).tokens("job")
    later = ask(engine, temperature=0.0, stop_token_ids=tuple(set(free)), min_tokens=5)
    assert len(later.tokens("job")) >= 5
    ended = ask(engine, logit_bias=(TokenBias(END, 100.0),), ignore_eos=False, min_tokens=4)
    assert len(ended.tokens("job")) == 4
    assert ended.finished("job").reason == "stop"


def test_a_stop_string_counts_once_the_answer_has_its_least_tokens(engine: CausalLM) -> None:
    bias = (TokenBias(65, 100.0),)
    assert ask(engine, logit_bias=bias, stop=("AA",)).text("job") == ""
    held = ask(engine, logit_bias=bias, stop=("AA",), min_tokens=5)
    # From the fifth token on: it and the sixth are the string.
    assert (held.text("job"), len(held.tokens("job"))) == ("AAAA", 6)


def test_scores_are_the_models_own_whatever_is_done_to_its_logits(engine: CausalLM) -> None:
    plain = ask(engine, temperature=0.0, logprobs=3)
    scores = scores_of(plain)
    assert [score.token_id for score in scores] == plain.tokens("job")
    for score in scores:
        assert score.rank == 0
        assert score.top is not None
        assert [other.logprob for other in score.top] == sorted(
            (other.logprob for other in score.top), reverse=True
        )
        assert (score.top[0].token_id, score.top[0].logprob) == (score.token_id, score.logprob)
        assert sum(math.exp(other.logprob) for other in score.top) <= 1 + 1e-5
    forced = ask(engine, temperature=0.0, logprobs=0, logit_bias=(TokenBias(END, 100.0),))
    first = scores_of(forced)[0]
    assert first.logprob < 0
    assert first.rank
    assert not first.top
    # Special tokens have a name, though they add nothing to the text.
    assert first.piece == b"<|end|>"
    assert not forced.text("job")


def test_every_chunk_has_the_scores_of_its_own_tokens(engine: CausalLM) -> None:
    transcript = ask(engine, logprobs=1, stop=("no such text",))
    for event in transcript.produced("job"):
        scored = decode(TokenScores, event.data).tokens if event.data else ()
        assert tuple(score.token_id for score in scored) == event.token_ids


def test_a_prompts_scores_come_before_the_answer(engine: CausalLM) -> None:
    prompt = tuple(token % 250 for token in range(300))  # Several chunks.
    transcript = ask(engine, prompt_tokens=prompt, prompt_logprobs=2, max_tokens=2)
    scores = scores_of(transcript, is_prompt=True)
    assert [score.token_id for score in scores] == list(prompt)
    assert (scores[0].logprob, scores[0].rank) == (0.0, None)
    assert all(score.logprob < 0 and score.rank is not None for score in scores[1:])
    places = [bool(event.token_ids) for event in transcript.produced("job")]
    assert places == sorted(places)


def test_scoring_an_answer_gives_what_generating_it_gave(engine: CausalLM) -> None:
    given = ask(engine, temperature=0.0, logprobs=0)
    answer = tuple(given.tokens("job"))
    scored = ask(engine, prompt_tokens=(*PROMPT, *answer), prompt_logprobs=0, max_tokens=1)
    again = scores_of(scored, is_prompt=True)[len(PROMPT) :]
    assert [score.rank for score in again] == [0] * len(answer)
    for one, other in zip(again, scores_of(given), strict=True):
        assert one.logprob == pytest.approx(other.logprob, abs=1e-4)


SAMPLED = {"temperature": 0.8, "seed": 7}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0.0},
    "unfiltered": SAMPLED,
    "nucleus": {**SAMPLED, "top_p": 0.7},
    "few": {**SAMPLED, "top_k": 5, "min_p": 0.01},
    "ruled": {**SAMPLED, "presence_penalty": 1.0, "repetition_penalty": 1.3, "min_tokens": 4},
    "formed": {**SAMPLED, "format": OutputFormat(FormatKind.REGEX, "[ab]{40}")},
}


@pytest.mark.parametrize("way", WAYS)
def test_the_gaps_of_an_honest_answer_are_above_zero(engine: CausalLM, way: str) -> None:
    answer = ask(engine, max_tokens=40, **WAYS[way]).tokens("job")
    gaps = gaps_of(engine, answer, **WAYS[way])
    assert len(gaps) == len(answer)
    # Scoring is one pass over many rows, and rounds near ties otherwise.
    assert all(gap > -1e-3 for gap in gaps)
    assert min(gaps) < 20, "noise decides: no token is far ahead"


@pytest.mark.parametrize("way", WAYS)
def test_a_token_that_the_sampler_did_not_take_has_a_gap_below_zero(
    engine: CausalLM, way: str
) -> None:
    answer = ask(engine, max_tokens=8, **WAYS[way]).tokens("job")
    honest = gaps_of(engine, answer, **WAYS[way])
    changed = [*answer[:4], answer[4] ^ 3, *answer[5:]]
    gaps = gaps_of(engine, changed, **WAYS[way])
    assert gaps[:4] == pytest.approx(honest[:4], abs=1e-3)
    assert gaps[4] < 0


def test_a_token_that_filters_leave_out_has_the_least_gap(engine: CausalLM) -> None:
    answer = ask(engine, max_tokens=4, temperature=0.8, top_k=2, seed=7).tokens("job")
    found = [gaps_of(engine, [token], temperature=0.8, top_k=2, seed=7)[0] for token in range(250)]
    assert sum(gap > 0 for gap in found) == 1
    assert found.count(-GAP_MAX) == 248
    assert found[answer[0]] > 0


def test_an_answer_that_is_checked_and_breaks_its_format_is_refused_in_words(
    engine: CausalLM,
) -> None:
    form = OutputFormat(FormatKind.REGEX, "[ab]{4}")
    checked: dict[str, Any] = {"format": form, "prompt_logprobs": 0, "scores_prefix": True}
    (failed,) = [
        e
        for e in ask(engine, prefix_tokens=tuple(b"abX"), **checked).of("job")
        if isinstance(e, Failed)
    ]
    assert (failed.code, failed.message) == (
        Code.INVALID_INPUT,
        "the answer to check does not match the format",
    )


def test_a_long_answer_that_is_checked_leaves_others_their_turns(engine: CausalLM) -> None:
    prefix = tuple(b"ab" * 50)
    options: dict[str, Any] = {"prompt_logprobs": 0, "scores_prefix": True}
    options |= {"prompt_tokens": PROMPT, "prefix_tokens": prefix}
    engine.submit("job", GenerationInput(max_tokens=1, **options))
    counts = []
    while not engine.is_idle:
        events = [event for event in engine.step() if isinstance(event, Produced) and event.data]
        blocks = [decode(TokenScores, event.data) for event in events]
        counts.append(sum(s.gap is not None for block in blocks for s in block.tokens))
    assert sum(counts) == len(prefix)
    assert max(counts) <= CHECKED_CHUNK_TOKENS


def gaps_of(engine: CausalLM, answer: Sequence[int], **options: Any) -> list[float]:
    checked = {"prompt_logprobs": 0, "scores_prefix": True, "max_tokens": 1}
    transcript = ask(engine, **{**options, **checked, "prefix_tokens": tuple(answer)})
    scores = scores_of(transcript, is_prompt=True)
    assert [score.gap for score in scores[: len(PROMPT)]] == [None] * len(PROMPT)
    return [score.gap for score in scores[len(PROMPT) :] if score.gap is not None]


def test_an_answer_that_goes_on_elsewhere_does_not_score_its_prompt_again(engine: CausalLM) -> None:
    transcript = ask(engine, prompt_logprobs=0, prefix_tokens=(65, 66))
    assert scores_of(transcript, is_prompt=True) == []


def test_scores_fit_the_output_that_a_node_allows(engine: CausalLM) -> None:
    prompt = tuple(b"x" * 400)
    transcript = ask(engine, prompt_tokens=prompt, prompt_logprobs=20, logprobs=20, max_tokens=50)
    allowance = Allowance(RunTerms(output_tokens_max=50))
    for event in transcript.produced("job"):
        allowance.take(event)
        assert len(event.data) < 100_000


def test_rules_of_one_job_change_nothing_for_its_neighbours(engine: CausalLM) -> None:
    def asked(number: int) -> GenerationInput:
        kinds: list[dict[str, Any]] = [
            {},
            {"presence_penalty": 1.5, "logit_bias": (TokenBias(70, 3.0),)},
            {"logprobs": 2, "min_p": 0.05},
            {"repetition_penalty": 1.3, "min_tokens": 3, "ignore_eos": False},
        ]
        return GenerationInput(
            **{"max_tokens": 12, "prompt_tokens": PROMPT, "ignore_eos": True, **kinds[number]},
            seed=number,
        )

    alone = []
    for number in range(4):
        engine.submit("one", asked(number))
        alone.append(run(engine).events)
    for number in range(4):
        engine.submit(str(number), asked(number))
    together = run(engine)
    for number, events in enumerate(alone):
        answered = [e for e in events if isinstance(e, Produced)]
        assert [e.token_ids for e in together.produced(str(number))] == [
            e.token_ids for e in answered
        ]


def test_a_text_is_tokenized_without_a_pass_of_the_model(engine: CausalLM) -> None:
    chat = (ChatMessage("user", "é"),)
    engine.submit("job", GenerationInput(max_tokens=1, messages=chat, tokenizes_only=True))
    transcript = run(engine)
    started, produced, completed = transcript.events
    assert isinstance(started, Started)
    assert started.input_units == Units()
    assert isinstance(completed, Completed)
    assert (completed.reason, completed.units) == ("complete", Units())
    assert isinstance(produced, Produced)
    assert not produced.token_ids
    output = decode(TokensOutput, produced.data)
    assert output.token_ids == (USER, 0xC3, 0xA9, END)
    assert output.pieces == (b"<|user|>", b"\xc3", b"\xa9", b"<|end|>")


def test_a_tokenization_that_was_cancelled_is_not_told(engine: CausalLM) -> None:
    engine.submit("job", GenerationInput(max_tokens=1, prompt="text", tokenizes_only=True))
    engine.cancel("job")
    assert engine.is_idle


def test_scores_are_the_logarithms_of_a_softmax(engine: CausalLM) -> None:
    scores = scores_of(ask(engine, logprobs=20, max_tokens=1))
    values = torch.tensor([other.logprob for other in scores[0].top or ()])
    assert float(values.exp().sum()) < 1
    assert len(values) == 20


def test_scores_of_a_prompt_that_fill_an_output_fail_their_own_job(
    engine: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "SCORE_BYTES_MAX", 60_000)
    engine.submit("beside", GenerationInput(max_tokens=5, prompt="x", ignore_eos=True))
    prompt = tuple(b"x" * 480)
    transcript = ask(engine, prompt_tokens=prompt, prompt_logprobs=20)
    assert transcript.failed("job").code is Code.INVALID_INPUT
    assert sum(len(event.data) for event in transcript.produced("job")) <= 60_000
    assert transcript.finished("beside").reason == "length"


def test_an_answer_ends_where_its_scores_fill_an_output(
    engine: CausalLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "SCORE_BYTES_MAX", 2_000)
    transcript = ask(engine, logprobs=20, max_tokens=50)
    assert transcript.finished("job").reason == "length"
    assert 0 < len(transcript.tokens("job")) < 10
