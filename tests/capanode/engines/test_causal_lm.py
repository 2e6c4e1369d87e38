"""Continuous batching: what a job gets does not depend on the others, and nobody waits for long."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from capanode.engines.base import (
    Completed,
    EngineRefusal,
    ModelLoadError,
    Produced,
    Started,
)
from capanode.engines.causal_lm import PREFILL_CHUNK_TOKENS, CausalLM
from protocol.errors import Code
from protocol.generation import ChatMessage, GenerationInput
from protocol.payload import EmbeddingInput, tokens_digest
from protocol.pricing import Units
from tests.capanode.engines.tiny_models import (
    END,
    LLAMA,
    USER,
    VOCAB,
    llama_weights,
    load,
    run,
    write_llama,
    write_script,
)


def prompt(text: str, *, max_tokens: int = 24, **options: Any) -> GenerationInput:
    options.setdefault("temperature", 0.0)
    options.setdefault("ignore_eos", True)
    return GenerationInput(max_tokens=max_tokens, prompt=text, **options)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_llama(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def engine(folder: Path) -> CausalLM:
    return load(folder)


def answer(engine: CausalLM, job_input: GenerationInput) -> list[int]:
    engine.submit("alone", job_input)
    return run(engine).tokens("alone")


# --- what is generated


@pytest.mark.slow
def test_greedy_answers_are_those_of_transformers(folder: Path, engine: CausalLM) -> None:
    # Imported here because it takes two seconds, which the other tests need not wait for.
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    reference: Any = AutoModelForCausalLM.from_pretrained(folder)
    texts = ["hello there", "x", "a much longer prompt " * 15]  # The last takes three pieces.
    for number, text in enumerate(texts):
        engine.submit(str(number), prompt(text))
    transcript = run(engine)
    for number, text in enumerate(texts):
        ids = torch.tensor([list(text.encode())])
        expected = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=24,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        assert transcript.tokens(str(number)) == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0.0},
        {"temperature": 0.9, "seed": 5},
        {"temperature": 1.3, "top_p": 0.8, "seed": 6},
    ],
    ids=["greedy", "sampled", "nucleus"],
)
def test_a_job_is_answered_alike_alone_and_among_others_that_come_and_go(
    tmp_path: Path, dtype: str, sampling: dict[str, Any]
) -> None:
    engine = load(write_llama(tmp_path, dtype=dtype), slots=5)
    jobs = {
        f"job {number}": prompt(
            "tell me " * (1 + 9 * number), max_tokens=5 + 9 * number, **sampling
        )
        for number in range(7)
    }
    alone = {job_id: answer(engine, job_input) for job_id, job_input in jobs.items()}
    pending = iter(jobs.items())

    def arrive(step: int) -> None:
        if step % 3 == 1:
            for job_id, job_input in itertools.islice(pending, 1):
                engine.submit(job_id, job_input)
        if step == 8:
            engine.submit("passing", prompt("in between"))
        if step == 12:
            engine.cancel("passing")

    engine.submit(*next(pending))
    transcript = run(engine, after_step=arrive)
    assert {job_id: transcript.tokens(job_id) for job_id in jobs} == alone


def test_a_seed_decides_the_answer_and_no_seed_is_zero(engine: CausalLM) -> None:
    sampled = [answer(engine, prompt("dice", temperature=1.5, seed=seed)) for seed in (0, 2, 0)]
    assert sampled[0] == sampled[2] != sampled[1]
    assert answer(engine, prompt("dice", temperature=1.5)) == sampled[0]


@pytest.mark.parametrize(
    "sampling",
    [{"temperature": 0.0}, {"temperature": 1.1, "top_p": 0.9, "seed": 9}],
    ids=["greedy", "sampled"],
)
def test_an_answer_resumed_after_any_token_goes_on_as_if_unbroken(
    engine: CausalLM, sampling: dict[str, Any]
) -> None:
    engine.submit("whole", prompt("once upon", max_tokens=20, stop=("zq",), **sampling))
    whole = run(engine)
    tokens = whole.tokens("whole")
    released = [event.text for event in whole.produced("whole")]
    for cut in (1, 7, len(tokens) - 1):
        rest = prompt(
            "once upon",
            max_tokens=20 - cut,
            prefix_tokens=tuple(tokens[:cut]),
            stop=("zq",),
            **sampling,
        )
        engine.submit("rest", rest)
        resumed = run(engine)
        assert resumed.tokens("rest") == tokens[cut:]
        assert [event.text for event in resumed.produced("rest")] == released[cut:]
        assert resumed.finished("rest").units == Units(
            input_tokens=len("once upon") + cut, output_tokens=len(tokens) - cut
        )


def test_a_chat_is_spelled_by_the_models_template(folder: Path, engine: CausalLM) -> None:
    messages = (ChatMessage("user", "hi"), ChatMessage("assistant", "yo"))
    engine.submit("chat", GenerationInput(max_tokens=1, messages=messages, temperature=0))
    spelled = (USER, *b"hi", END, USER, *b"yo", END)
    engine.submit("ids", GenerationInput(max_tokens=1, prompt_tokens=spelled, temperature=0))
    transcript = run(engine)
    started = transcript.of("chat")[0]
    assert started == Started("chat", Units(len(spelled)), tokens_digest((spelled,)))
    assert transcript.tokens("chat") == transcript.tokens("ids")


def test_the_profile_states_what_computes(engine: CausalLM) -> None:
    stated = engine.info.profile
    for part in ("llama/2", f"torch/{torch.__version__}", "weights=fp32", "kv=fp32", "sampler="):
        assert part in stated
    assert "device=cpu-" in stated or "device=cuda-" in stated


# --- when it ends, and what is metered


def script_engine(tmp_path: Path, text: str, **options: Any) -> CausalLM:
    """Answers the prompt `>` with `text`, then the end token, then what it likes."""
    return load(write_script(tmp_path, [*b">", *text.encode(), END, USER]), **options)


def test_the_end_token_ends_the_answer_and_is_not_metered(tmp_path: Path) -> None:
    engine = script_engine(tmp_path, "helo")
    engine.submit("job", prompt(">", ignore_eos=False))
    transcript = run(engine)
    assert transcript.text("job") == "helo"
    assert transcript.tokens("job") == list(b"helo")
    assert transcript.finished("job") == Completed("job", "stop", Units(1, 4), END)


def test_an_ignored_end_token_is_a_token_without_text(tmp_path: Path) -> None:
    engine = script_engine(tmp_path, "helo")
    engine.submit("job", prompt(">", max_tokens=6))
    transcript = run(engine)
    assert transcript.tokens("job") == [*b"helo", END, USER]
    assert transcript.text("job") == "helo"
    assert transcript.finished("job") == Completed("job", "length", Units(1, 6))


def test_max_tokens_ends_the_answer(tmp_path: Path) -> None:
    engine = script_engine(tmp_path, "abcdef")
    engine.submit("job", prompt(">", max_tokens=3))
    transcript = run(engine)
    assert transcript.text("job") == "abc"
    assert transcript.finished("job") == Completed("job", "length", Units(1, 3))


def test_a_full_context_ends_the_answer(folder: Path) -> None:
    engine = load(folder, context_tokens=64)
    engine.submit("job", prompt("x" * 60, max_tokens=100))
    transcript = run(engine)
    assert transcript.finished("job") == Completed("job", "length", Units(60, 4))


def test_a_stop_string_across_tokens_ends_the_answer_before_it(tmp_path: Path) -> None:
    engine = script_engine(tmp_path, "abcdef")
    engine.submit("job", prompt(">", stop=("zz", "cde")))
    transcript = run(engine)
    assert transcript.text("job") == "ab"
    assert transcript.tokens("job") == list(b"abcde")
    assert transcript.finished("job") == Completed("job", "stop", Units(1, 5), end_stop=1)


def test_text_held_back_for_a_stop_string_is_released_when_it_cannot_come(tmp_path: Path) -> None:
    engine = script_engine(tmp_path, "abcdef")
    engine.submit("job", prompt(">", max_tokens=4, stop=("bcx", "dez")))
    transcript = run(engine)
    assert [event.text for event in transcript.produced("job")] == ["a", "", "", "bcd"]


def test_a_prefix_that_ends_with_the_stop_string_is_a_finished_answer(tmp_path: Path) -> None:
    engine = script_engine(tmp_path, "abcdef")
    engine.submit("job", prompt(">", prefix_tokens=tuple(b"abcd"), stop=("cd",)))
    assert run(engine).of("job") == [
        Started("job", Units(5), tokens_digest((b">abcd",), prefix_tokens=4), prefix_tokens=4),
        Completed("job", "stop", Units(input_tokens=5), end_stop=0),
    ]
    assert engine.is_idle


def test_characters_arrive_whole(tmp_path: Path) -> None:
    engine = script_engine(tmp_path, "a😀b€")
    engine.submit("job", prompt(">", ignore_eos=False))
    transcript = run(engine)
    texts = [event.text for event in transcript.produced("job")]
    assert texts == ["a", "", "", "", "😀", "b", "", "", "€"]


def test_half_a_character_at_the_end_is_dropped_but_metered(tmp_path: Path) -> None:
    engine = script_engine(tmp_path, "a😀")
    engine.submit("job", prompt(">", max_tokens=3))
    transcript = run(engine)
    assert transcript.text("job") == "a"
    assert transcript.finished("job").units == Units(1, 3)


def test_a_resumed_answer_completes_the_character_that_was_begun(tmp_path: Path) -> None:
    engine = script_engine(tmp_path, "a😀b")
    begun = tuple("a😀".encode()[:3])
    engine.submit("job", prompt(">", prefix_tokens=begun, max_tokens=3))
    assert run(engine).text("job") == "😀b"


# --- who waits for whom


def test_a_free_slot_is_taken_at_once_and_a_full_engine_lets_wait(folder: Path) -> None:
    engine = load(folder, slots=2)
    for job_id in ("a", "b", "c"):
        engine.submit(job_id, prompt(job_id, max_tokens=1000))
    events = engine.step()
    assert [event.job_id for event in events if isinstance(event, Started)] == ["a", "b"]
    engine.cancel("a")
    engine.cancel("unknown")
    events = engine.step()
    assert [event.job_id for event in events if isinstance(event, Started)] == ["c"]
    assert "a" not in {event.job_id for event in events}
    engine.cancel("b")
    engine.cancel("c")
    assert engine.is_idle
    assert engine.step() == []


def test_a_waiting_job_can_be_cancelled(folder: Path) -> None:
    engine = load(folder, slots=1)
    engine.submit("a", prompt("a"))
    engine.submit("b", prompt("b"))
    engine.step()
    engine.cancel("b")
    transcript = run(engine)
    assert transcript.finished("a").reason == "length"
    assert not transcript.of("b")


def test_cancelled_jobs_leave_the_others_answers_alone(engine: CausalLM) -> None:
    expected = [answer(engine, prompt(text, max_tokens=30)) for text in "abcd"]
    for text in "abcd":
        engine.submit(text, prompt(text, max_tokens=30))
    transcript = run(engine, after_step=lambda step: engine.cancel("b") if step == 9 else None)
    for text, tokens in zip("abcd", expected, strict=True):
        if text != "b":
            assert transcript.tokens(text) == tokens


def test_a_long_prompt_lets_running_answers_go_on(folder: Path) -> None:
    engine = load(folder, slots=2)
    engine.submit("running", prompt("hello", max_tokens=40))
    engine.step()
    engine.submit("long", prompt("y" * (3 * PREFILL_CHUNK_TOKENS), max_tokens=1))
    silence = longest = 0
    while engine.is_idle is False:
        speakers = {event.job_id for event in engine.step() if isinstance(event, Produced)}
        silence = 0 if "running" in speakers else silence + 1
        longest = max(longest, silence)
        if "long" in speakers:
            break
    assert longest == 1
    engine.cancel("running")


def test_short_prompts_are_prefilled_together(engine: CausalLM) -> None:
    for job_id in "abcd":
        engine.submit(job_id, prompt("short " + job_id))
    first = {event.job_id for event in engine.step() if isinstance(event, Produced)}
    assert first == set("abcd")


def test_answers_that_outgrow_the_cache_wait_and_come_out_the_same(tmp_path: Path) -> None:
    folder = write_llama(tmp_path)
    token_bytes = 2 * 2 * 2 * 16 * 4
    tight = load(folder, context_tokens=192, cache_bytes=200 * token_bytes)
    ample = load(folder, context_tokens=192)
    jobs = {str(number): prompt("z" * (10 + number), max_tokens=120) for number in range(3)}
    transcripts = []
    for engine in (tight, ample):
        for job_id, job_input in jobs.items():
            engine.submit(job_id, job_input)
        transcripts.append(run(engine))
    for job_id in jobs:
        assert transcripts[0].tokens(job_id) == transcripts[1].tokens(job_id)
        assert sum(isinstance(event, Started) for event in transcripts[0].of(job_id)) == 1
        assert transcripts[0].finished(job_id) == transcripts[1].finished(job_id)


# --- what is refused


def refusal(engine: CausalLM, job_input: Any) -> EngineRefusal:
    with pytest.raises(EngineRefusal) as caught:
        engine.submit("refused", job_input)
    assert engine.is_idle
    return caught.value


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(folder: Path) -> None:
    engine = load(folder, context_tokens=64)
    for text in ("x" * 64, "x" * 5_000_000):
        assert refusal(engine, prompt(text)).code == Code.PROMPT_TOO_LONG
    long_prefix = prompt("x" * 40, prefix_tokens=(5,) * 40)
    assert refusal(engine, long_prefix).code == Code.PROMPT_TOO_LONG
    assert len(answer(engine, prompt("x" * 63))) == 1


def test_bad_inputs_are_refused_and_the_next_good_one_works(engine: CausalLM) -> None:
    bad: list[Any] = [
        GenerationInput(max_tokens=1, prompt_tokens=(VOCAB,)),
        prompt("x", prefix_tokens=(VOCAB + 5,)),
        prompt(""),
        EmbeddingInput(texts=("x",)),
        GenerationInput(max_tokens=1, messages=(ChatMessage("robot", "beep"),)),
    ]
    for job_input in bad:
        assert refusal(engine, job_input).code == Code.INVALID_INPUT
    assert len(answer(engine, prompt("good"))) == 24


def test_a_model_without_chat_template_takes_prompts_only(tmp_path: Path) -> None:
    engine = load(write_llama(tmp_path, chat_template=None))
    chat = GenerationInput(max_tokens=1, messages=(ChatMessage("user", "hi"),))
    assert "template" in str(refusal(engine, chat))


def test_a_hostile_template_reaches_nothing(tmp_path: Path) -> None:
    template = "{{ messages.__class__.__mro__[1].__subclasses__() }}"
    engine = load(write_llama(tmp_path, chat_template=template))
    chat = GenerationInput(max_tokens=1, messages=(ChatMessage("user", "hi"),))
    assert refusal(engine, chat).code == Code.INVALID_INPUT


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("tokenizer.json", "{}"),
        ("tokenizer_config.json", '{"chat_template": "{% if %}"}'),
        ("tokenizer_config.json", '{"chat_template": 5}'),
        ("generation_config.json", '{"eos_token_id": "two"}'),
        ("model.safetensors", "\xff" * 64),
        ("model.safetensors.index.json", '{"weight_map": {"x": "../../etc/passwd"}}'),
    ],
)
def test_a_damaged_model_directory_is_refused(tmp_path: Path, name: str, content: str) -> None:
    folder = write_llama(tmp_path)
    (folder / name).write_text(content)
    with pytest.raises(ModelLoadError):
        load(folder)


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path: Path) -> None:
    weights = llama_weights(LLAMA)
    wrong = {**weights, "model.norm.weight": torch.ones(3)}
    with pytest.raises(ModelLoadError, match="shape"):
        load(write_llama(tmp_path, weights=wrong))
    del weights["model.layers.1.mlp.up_proj.weight"]
    with pytest.raises(ModelLoadError, match="lack"):
        load(write_llama(tmp_path, weights=weights))


def test_a_cache_too_small_for_one_row_is_refused(folder: Path) -> None:
    with pytest.raises(ModelLoadError, match="cache"):
        load(folder, cache_bytes=100)


# --- the real model


@pytest.fixture(scope="module")
def smollm(demo_models: Callable[[str], Path]) -> CausalLM:
    return load(demo_models("smollm2-135m-instruct"), slots=8)


def chat(text: str, **options: Any) -> GenerationInput:
    return GenerationInput(messages=(ChatMessage("user", text),), **options)


@pytest.mark.slow
@pytest.mark.models
def test_smollm_knows_the_capital_of_france(smollm: CausalLM) -> None:
    question = "What is the capital of France? Answer in one sentence."
    smollm.submit("job", chat(question, max_tokens=40, temperature=0.0))
    transcript = run(smollm)
    assert "Paris" in transcript.text("job")
    assert transcript.finished("job").reason == "stop"


@pytest.mark.slow
@pytest.mark.models
def test_smollm_answers_bit_for_bit_alike_alone_and_in_a_batch(smollm: CausalLM) -> None:
    jobs = {
        str(number): chat(
            f"Write {number} words about the sea.",
            max_tokens=12 + number,
            temperature=(0.0, 1.0)[number % 2],
            top_p=0.95,
            seed=number,
            ignore_eos=True,
        )
        for number in range(6)
    }
    for job_id, job_input in jobs.items():
        smollm.submit(job_id, job_input)
    together = run(smollm)
    for job_id, job_input in jobs.items():
        smollm.submit("alone", job_input)
        assert run(smollm).tokens("alone") == together.tokens(job_id)


@pytest.mark.slow
@pytest.mark.models
def test_smollm_goes_on_bit_for_bit_alike_wherever_its_answer_was_cut(smollm: CausalLM) -> None:
    """Near ties tell decoding from prefilling: one in nine cuts of such an answer would show it."""
    story = chat("Tell me a story about a glacier.", max_tokens=60, temperature=0.0)
    smollm.submit("whole", story)
    whole = run(smollm).tokens("whole")
    cuts = range(5, len(whole), 7)
    for cut in cuts:
        prefix = tuple(whole[:cut])
        smollm.submit(str(cut), replace(story, prefix_tokens=prefix, max_tokens=60 - cut))
    rest = run(smollm)
    assert {cut: rest.tokens(str(cut)) for cut in cuts} == {cut: whole[cut:] for cut in cuts}
