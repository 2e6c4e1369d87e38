"""Decoders of transformers' own behind the same interface as ours, on tiny random models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from capanode.engines.base import EngineRefusal, ModelLoadError
from capanode.engines.transformers_lm import TransformersLM
from capanode.tasks import OTHER_DECODERS, engine_of
from protocol.codec import decode
from protocol.generation import GenerationInput, TokenScores
from protocol.messages import Task
from protocol.payload import EmbeddingInput
from tests.capanode.engines.tiny_models import END, VOCAB, Transcript, run, write_tokenizer

CONFIGS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": VOCAB,
        "n_positions": 256,
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 4,
        "eos_token_id": END,
        "bos_token_id": END,
        "dtype": "float32",
    },
    "opt": {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": VOCAB,
        "max_position_embeddings": 256,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "eos_token_id": END,
        "bos_token_id": END,
        "pad_token_id": 0,
        "dtype": "float32",
    },
}
LONG = "a text that is longer than one chunk of a prompt: " * 4


def write_model(folder: Path, name: str, **changes: Any) -> Any:
    """A random model in `folder`; returns transformers' own."""
    # Imported here because it takes two seconds, which the other tests need not wait for.
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    plain = {**CONFIGS[name], **changes}
    (folder / "config.json").write_text(json.dumps(plain))
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)).eval()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.add_(torch.randn(tensor.shape) * 0.1)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(plain))
    write_tokenizer(folder, chat_template=None)
    return model


def load(folder: Path, slots: int = 2) -> TransformersLM:
    return TransformersLM.load(folder, slots=slots, threads=1)


def greedy(prompt: str, tokens: int = 6, **fields: Any) -> GenerationInput:
    return GenerationInput(
        max_tokens=tokens, prompt=prompt, temperature=0.0, ignore_eos=True, **fields
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", CONFIGS)
def test_greedy_answers_are_those_of_transformers_generate(tmp_path: Path, name: str) -> None:
    reference = write_model(tmp_path, name)
    engine = load(tmp_path)
    prompts = {"short": "ab", "long": LONG, "third": "waits for a slot"}
    for job_id, prompt in prompts.items():
        engine.submit(job_id, greedy(prompt))
    transcript = run(engine)
    for job_id, prompt in prompts.items():
        ids = torch.tensor([list(prompt.encode())])
        expected = reference.generate(
            ids, do_sample=False, max_new_tokens=6, eos_token_id=None, pad_token_id=0
        )
        assert transcript.tokens(job_id) == expected[0, ids.shape[1] :].tolist(), job_id
        assert transcript.finished(job_id).units.input_tokens == ids.shape[1]


@pytest.mark.slow
def test_an_answer_is_the_same_whatever_runs_beside_it(tmp_path: Path) -> None:
    write_model(tmp_path, "gpt2")
    texts = []
    for others in (0, 3):
        engine = load(tmp_path, slots=4)
        for index in range(others):
            engine.submit(f"other{index}", greedy("other " * (index + 1)))
        engine.submit("job", GenerationInput(max_tokens=8, prompt="ab", seed=7, ignore_eos=True))
        texts.append(run(engine).tokens("job"))
    assert texts[0] == texts[1]
    assert len(texts[0]) == 8


@pytest.mark.slow
def test_prompts_are_scored_and_jobs_are_cancelled(tmp_path: Path) -> None:
    write_model(tmp_path, "gpt2")
    engine = load(tmp_path)
    engine.submit("gone", greedy("x", tokens=100))
    engine.submit("scored", greedy(LONG, tokens=1, prompt_logprobs=1))
    engine.submit("waiting", greedy("x"))
    transcript = Transcript()
    transcript.events += [event for event in engine.step() if event.job_id != "gone"]
    engine.cancel("gone")
    engine.cancel("waiting")
    transcript.events += run(engine).events
    blocks = [event.data for event in transcript.produced("scored") if event.data]
    scores = [score for block in blocks for score in decode(TokenScores, block).tokens]
    assert [score.token_id for score in scores] == list(LONG.encode())
    assert {event.job_id for event in transcript.events} == {"scored"}


@pytest.mark.slow
def test_it_states_what_it_is_and_takes_few_jobs_at_once(tmp_path: Path) -> None:
    write_model(tmp_path, "gpt2")
    info = load(tmp_path, slots=16).info
    assert (info.task, info.slots, info.context_tokens) == (Task.CAUSAL_LM, 4, 256)
    assert info.quantization == "fp32"
    assert info.profile.startswith("transformers/1 ")
    with pytest.raises(EngineRefusal, match="generates text"):
        load(tmp_path).submit("job", EmbeddingInput(("a",)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"auto_map": {"AutoModelForCausalLM": "x.Y"}}, "asks for code"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization"),
        ({"dtype": "int8"}, "int8"),
        ({"n_positions": None}, "how long|does not load"),
        ({"n_head": 5}, "does not load"),
        ({"model_type": "unheard-of"}, "does not load"),
    ],
)
def test_a_model_that_transformers_does_not_run_is_refused(
    tmp_path: Path, changes: dict[str, Any], reason: str
) -> None:
    write_model(tmp_path, "gpt2")
    (tmp_path / "config.json").write_text(json.dumps({**CONFIGS["gpt2"], **changes}))
    with pytest.raises(ModelLoadError, match=reason):
        load(tmp_path)


def test_only_what_ours_does_not_run_is_left_to_transformers() -> None:
    for architecture in OTHER_DECODERS:
        assert engine_of(Task.CAUSAL_LM, architecture).endswith(":TransformersLM")
    assert engine_of(Task.CAUSAL_LM, "LlamaForCausalLM").endswith(":CausalLM")
