"""Our side of vLLM, against a stand-in of the signatures of vLLM 0.33.0: no GPU, no vLLM."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from capanode.engines.base import (
    Completed,
    EngineRefusal,
    Failed,
    ModelLoadError,
    Produced,
    Started,
)
from capanode.engines.vllm_lm import VllmLM
from capanode.engines.vllm_outputs import VllmFault
from protocol.codec import decode
from protocol.errors import Code
from protocol.features import Feature
from protocol.generation import (
    FormatKind,
    GenerationInput,
    OutputFormat,
    TokenBias,
    TokenScores,
)
from protocol.messages import Task
from protocol.payload import EmbeddingInput
from tests.capanode.engines.tiny_models import END, Transcript, run
from tests.capanode.engines.vllm_makers import load, stand_in_installed, write_model


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with stand_in_installed(monkeypatch):
        yield


@pytest.fixture
def engine(tmp_path: Path) -> VllmLM:
    return load(write_model(tmp_path))


def text(prompt: str = "ab", tokens: int = 6, **fields: Any) -> GenerationInput:
    return GenerationInput(max_tokens=tokens, prompt=prompt, **{"ignore_eos": True, **fields})


def answer(engine: VllmLM, job_input: GenerationInput) -> Transcript:
    engine.submit("job", job_input)
    return run(engine)


def started(transcript: Transcript, job_id: str = "job") -> Started:
    first = transcript.of(job_id)[0]
    assert isinstance(first, Started)
    return first


def library(engine: VllmLM) -> Any:
    """The stand-in's engine below ours, which was made last."""
    assert engine.info.profile.startswith("vllm/")
    return sys.modules["vllm"].LLMEngine.latest


def test_an_answer_streams_token_by_token(engine: VllmLM) -> None:
    transcript = answer(engine, text())
    assert started(transcript).input_units.input_tokens == 2
    produced = transcript.produced("job")
    assert [len(event.token_ids) for event in produced] == [1] * 6
    assert transcript.text("job") == bytes(transcript.tokens("job")).decode()
    end = transcript.finished("job")
    assert (end.reason, end.units.output_tokens, end.end_token) == ("length", 6, None)
    assert engine.is_idle
    assert not library(engine).has_unfinished_requests()


def test_several_tokens_of_one_step_are_one_answer(tmp_path: Path) -> None:
    whole = answer(load(write_model(tmp_path)), text()).tokens("job")
    behaviour = {"tokens_per_step": 4, "idle_steps": [30, 31]}
    transcript = answer(load(write_model(tmp_path, behaviour)), text())
    assert transcript.tokens("job") == whole


def test_jobs_run_beside_each_other_and_wait_for_a_slot(tmp_path: Path) -> None:
    engine = load(write_model(tmp_path), slots=2)
    for number in range(5):
        engine.submit(f"job {number}", text(f"prompt {number}", tokens=number + 2))
    transcript = run(engine)
    for number in range(5):
        assert len(transcript.tokens(f"job {number}")) == number + 2
    starts = [event.job_id for event in transcript.events if isinstance(event, Started)]
    assert starts == [f"job {number}" for number in range(5)]
    alone = answer(load(write_model(tmp_path)), text("prompt 3", tokens=5))
    assert alone.tokens("job") == transcript.tokens("job 3")


def test_a_cancelled_job_is_taken_from_vllm_and_says_no_more(engine: VllmLM) -> None:
    engine.submit("gone", text(tokens=50))
    engine.submit("stays", text("other", tokens=3))
    first = engine.step()
    engine.cancel("gone")
    engine.cancel("unknown")
    assert [call for call in library(engine).calls if call.startswith("abort")] == ["abort r3"]
    # Its name may be used again at once.
    engine.submit("gone", text("again", tokens=2))
    transcript = run(engine)
    assert {event.job_id for event in first} == {"gone", "stays"}
    assert started(transcript, "gone").input_units.input_tokens == 5
    assert len(transcript.tokens("gone")) == 2


def test_a_stop_string_ends_the_answer_in_vllm_too(engine: VllmLM) -> None:
    whole = answer(engine, text(tokens=20)).text("job")
    library(engine).calls.clear()
    transcript = answer(engine, text(tokens=20, stop=(whole[5:8],)))
    assert transcript.text("job") == whole[:5]
    end = transcript.finished("job")
    assert (end.reason, end.end_stop, end.units.output_tokens) == ("stop", 0, 8)
    assert [call.split()[0] for call in library(engine).calls] == ["abort"]
    assert not library(engine).has_unfinished_requests()


def test_an_end_of_text_token_is_neither_delivered_nor_metered(engine: VllmLM) -> None:
    transcript = answer(engine, text(tokens=100, ignore_eos=False))
    end = transcript.finished("job")
    assert (end.reason, end.end_token) == ("stop", END)
    assert END not in transcript.tokens("job")
    assert end.units.output_tokens == len(transcript.tokens("job"))
    longer = answer(engine, text(tokens=100, ignore_eos=False, min_tokens=60))
    assert longer.finished("job").units.output_tokens >= 60


def test_settings_reach_vllms_sampler(engine: VllmLM) -> None:
    transcript = answer(engine, text(tokens=3, logit_bias=(TokenBias(ord("z"), 9.0),)))
    assert transcript.text("job") == "zzz"
    answers = {
        answer(engine, text(seed=seed, temperature=temperature)).text("job")
        for seed in (1, 2)
        for temperature in (0.0, 1.0)
    }
    assert len(answers) == 3


def test_an_answer_ends_where_the_context_is_full(engine: VllmLM) -> None:
    transcript = answer(engine, text("x" * 120, tokens=50))
    end = transcript.finished("job")
    assert (end.reason, end.units.output_tokens) == ("length", 8)
    with pytest.raises(EngineRefusal) as refused:
        engine.submit("long", text("x" * 200))
    assert refused.value.code is Code.PROMPT_TOO_LONG


def test_an_answer_goes_on_from_another_node(engine: VllmLM) -> None:
    before = (ord("o"), ord("k"))
    transcript = answer(engine, text(prefix_tokens=before, stop=("ok" + "a",)))
    first = started(transcript)
    assert (first.input_units.input_tokens, first.prefix_tokens) == (4, 2)
    assert transcript.finished("job").units.output_tokens == 6
    whole = answer(engine, text(prefix_tokens=(ord("o"), ord("k")), stop=("ok",)))
    assert isinstance(whole.of("job")[-1], Completed)
    assert not whole.tokens("job")


def test_prompts_are_shared_within_one_salt_only(engine: VllmLM) -> None:
    prompt = "a conversation of more than two blocks"

    def cached(salt: str) -> int:
        transcript = answer(engine, text(prompt, tokens=1, cache_salt=salt))
        return started(transcript).input_units.cached_tokens

    assert [cached("one"), cached("one"), cached("two"), cached("two")] == [0, 32, 0, 32]
    # Without a salt a job shares with none.
    assert [cached(""), cached("")] == [0, 0]


def test_tokens_and_prompts_are_scored_in_our_words(engine: VllmLM) -> None:
    transcript = answer(engine, text("abc", tokens=2, logprobs=3, prompt_logprobs=1))
    prompt, *answered = [
        decode(TokenScores, event.data) for event in transcript.produced("job") if event.data
    ]
    assert prompt.is_prompt
    assert [score.token_id for score in prompt.tokens] == list(b"abc")
    assert [score.logprob for score in prompt.tokens] == [0.0, -0.5, -0.5]
    tokens = transcript.tokens("job")
    assert [score.token_id for scores in answered for score in scores.tokens] == tokens
    (score,) = answered[0].tokens
    assert (score.piece, score.rank) == (bytes(tokens[:1]), 1)
    assert score.top is not None
    assert [(one.token_id, one.logprob) for one in score.top] == [
        (120, -0.25),
        (tokens[0], -0.5),
        (100, -0.75),
    ]
    bare = answer(engine, text("abc", tokens=1, logprobs=0))
    (only,) = decode(TokenScores, bare.produced("job")[0].data).tokens
    assert only.top == ()


def test_a_text_is_tokenized_without_vllm(engine: VllmLM) -> None:
    transcript = answer(engine, text("abc", tokenizes_only=True))
    assert transcript.finished("job").reason == "complete"
    engine.submit("gone", text("abc", tokenizes_only=True))
    engine.cancel("gone")
    assert engine.is_idle


def test_the_offer_claims_nothing_of_our_sampler(engine: VllmLM) -> None:
    info = engine.info
    assert (info.task, info.slots, info.context_tokens) == (Task.CAUSAL_LM, 4, 128)
    assert info.quantization == "bf16"
    assert info.profile.startswith("vllm/0.33.0 ")
    assert info.profile.endswith(" sampler=vllm")
    wanted = {Feature.CHAT, Feature.SAMPLING, Feature.LOGPROBS, Feature.TOKENIZE}
    assert wanted <= set(info.features)
    assert not {Feature.STRUCTURED_OUTPUTS, Feature.ANSWER_SCORES} & set(info.features)
    with pytest.raises(EngineRefusal, match="formats"):
        engine.submit("job", text(format=OutputFormat(FormatKind.JSON_OBJECT)))
    checked = text(prefix_tokens=(97,), scores_prefix=True, prompt_logprobs=0)
    with pytest.raises(EngineRefusal, match="not checked"):
        engine.submit("job", checked)
    with pytest.raises(EngineRefusal, match="generates text"):
        engine.submit("job", EmbeddingInput(("a",)))
    assert engine.is_idle


def test_vllm_is_started_in_process_offline_and_without_code_of_the_model(engine: VllmLM) -> None:
    arguments = library(engine).engine_args
    assert arguments.load_format == "safetensors"
    assert arguments.trust_remote_code is False
    assert arguments.skip_tokenizer_init
    assert arguments.disable_log_stats
    assert arguments.enable_prefix_caching
    assert (arguments.max_num_seqs, arguments.tensor_parallel_size) == (4, 1)
    assert arguments.distributed_executor_backend == "uni"
    assert arguments.generation_config == "vllm"
    # It has computed with every kind of setting before the first job.
    assert not library(engine).has_unfinished_requests()


@pytest.mark.parametrize("end", ["abort", "error", "repetition", "of a later version", "stop"])
def test_an_end_that_is_not_ours_fails_its_job_and_no_other(tmp_path: Path, end: str) -> None:
    engine = load(write_model(tmp_path))
    library(engine).behaviour = {"completion": {"finish_reason": end}, "output": {"finished": True}}
    engine.submit("job", text(tokens=9))
    engine.step()
    library(engine).behaviour = {}
    engine.submit("next", text(tokens=2))
    assert len(run(engine).tokens("next")) == 2


def test_an_answer_that_vllm_gives_up_is_retried_elsewhere(tmp_path: Path) -> None:
    engine = load(write_model(tmp_path))
    library(engine).behaviour = {
        "completion": {"finish_reason": "error"},
        "output": {"finished": True},
    }
    engine.submit("job", text(tokens=9))
    *_, produced, failed = engine.step()
    assert isinstance(produced, Produced)
    assert isinstance(failed, Failed)
    assert (failed.code, failed.units.output_tokens) == (Code.INTERNAL, 1)


def test_text_that_was_held_back_comes_where_vllm_has_no_more_room(tmp_path: Path) -> None:
    engine = load(write_model(tmp_path))
    library(engine).behaviour = {
        "completion": {"finish_reason": "length", "token_ids": [ord("x")]},
        "output": {"finished": True},
    }
    transcript = answer(engine, text(tokens=9, stop=("xy",)))
    assert transcript.text("job") == "x"
    assert transcript.finished("job").reason == "length"


@pytest.mark.parametrize(
    ("behaviour", "reason"),
    [
        ({"output": {"outputs": []}}, "one answer"),
        ({"completion": {"token_ids": [272]}}, "vocabulary"),
        ({"completion": {"token_ids": [-1]}}, "vocabulary"),
        ({"output": {"finished": True}}, "has ended and has not"),
        ({"output": {"num_cached_tokens": 2}}, "more of a prompt"),
        ({"output": {"num_cached_tokens": -1}}, "more of a prompt"),
        ({"completion": {"logprobs": []}}, "not one score"),
        ({"completion": {"logprobs": [{}]}}, "missing"),
        ({"output": {"prompt_logprobs": [None]}}, "not one score"),
        ({"output": {"prompt_logprobs": None}}, "missing"),
    ],
)
def test_wrong_words_and_counts_end_the_engine(
    engine: VllmLM, behaviour: dict[str, Any], reason: str
) -> None:
    engine.submit("job", text(logprobs=1, prompt_logprobs=1))
    library(engine).behaviour = behaviour
    with pytest.raises(VllmFault, match=reason):
        engine.step()


def test_a_gpu_without_memory_is_told_as_that_and_another_error_as_it_is(engine: VllmLM) -> None:
    """The worker's loop ends the process for both, and its node hears which it was."""
    library(engine).behaviour = {
        "raises": {"large": "CUDA out of memory. Tried to allocate", "odd": "assertion failed"}
    }
    engine.submit("job", text("large"))
    with pytest.raises(MemoryError):
        engine.step()
    engine.cancel("job")
    engine.submit("job", text("odd"))
    with pytest.raises(RuntimeError, match="assertion"):
        engine.step()


def test_what_vllm_does_not_take_is_refused_without_its_words(engine: VllmLM) -> None:
    library(engine).engine_args.max_logprobs = 1
    with pytest.raises(EngineRefusal, match="these settings") as refused:
        engine.submit("job", text(logprobs=5))
    assert refused.value.code is Code.INVALID_INPUT
    assert engine.is_idle


def test_another_version_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_model(tmp_path)
    import vllm  # noqa: PLC0415

    monkeypatch.setattr(vllm, "__version__", "0.40.1")
    with pytest.raises(ModelLoadError, match=r"0\.40\.1"):
        load(tmp_path)


def test_a_missing_vllm_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ModelLoadError, match=r"capacloud\[vllm\]"):
        load(write_model(tmp_path))


def test_a_model_that_vllm_does_not_run_says_so_in_its_words(tmp_path: Path) -> None:
    write_model(tmp_path)
    plain = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**plain, "note": "unsupported"}))
    with pytest.raises(ValueError, match="not supported"):
        load(tmp_path)
