"""Models made on the spot: random tiny ones, and one whose answer is written in advance."""

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from capanode.engines.base import Completed, EngineEvent, Failed, Produced
from capanode.engines.causal_lm import CausalLM
from sim.byte_tokenizer import write_byte_tokenizer

END = 256
USER = 257
VOCAB = 272
CHAT_TEMPLATE = (
    "{% for message in messages %}<|user|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if messages[0]['role'] == 'robot' %}{{ raise_exception('robots do not chat') }}{% endif %}"
)
LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10_000.0,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "eos_token_id": END,
    "dtype": "float32",
}


def write_tokenizer(folder: Path, *, chat_template: str | None = CHAT_TEMPLATE) -> None:
    """One token per byte, and two special ones."""
    special = {END: "<|end|>", USER: "<|user|>"}
    write_byte_tokenizer(folder, special, end="<|end|>", chat_template=chat_template)


def llama_weights(config: Mapping[str, Any], *, seed: int = 0) -> dict[str, Tensor]:
    """Random weights that make answers depend on the whole prompt."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).mul_(float(shape[-1]) ** -0.5)

    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries = config["num_attention_heads"] * config["head_dim"]
    keys = config["num_key_value_heads"] * config["head_dim"]
    weights = {
        "model.embed_tokens.weight": random(config["vocab_size"], hidden) * 3,
        "model.norm.weight": 1 + random(hidden),
    }
    for layer in range(config["num_hidden_layers"]):
        name = f"model.layers.{layer}"
        weights |= {
            f"{name}.input_layernorm.weight": 1 + random(hidden),
            f"{name}.post_attention_layernorm.weight": 1 + random(hidden),
            f"{name}.self_attn.q_proj.weight": random(queries, hidden) * 2,
            f"{name}.self_attn.k_proj.weight": random(keys, hidden) * 2,
            f"{name}.self_attn.v_proj.weight": random(keys, hidden),
            f"{name}.self_attn.o_proj.weight": random(hidden, queries),
            f"{name}.mlp.gate_proj.weight": random(inner, hidden),
            f"{name}.mlp.up_proj.weight": random(inner, hidden),
            f"{name}.mlp.down_proj.weight": random(hidden, inner),
        }
        if "Qwen2ForCausalLM" in config["architectures"]:
            for part, rows in (("q_proj", queries), ("k_proj", keys), ("v_proj", keys)):
                weights[f"{name}.self_attn.{part}.bias"] = random(rows)
    if not config["tie_word_embeddings"]:
        weights["lm_head.weight"] = random(config["vocab_size"], hidden) * 3
    return weights


def write_llama(
    folder: Path,
    *,
    weights: Mapping[str, Tensor] | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
    **changes: Any,
) -> Path:
    """A model directory as the store lays it out."""
    config = {**LLAMA, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    write_tokenizer(folder, chat_template=chat_template)
    dtype = getattr(torch, config["dtype"])
    tensors = weights if weights is not None else llama_weights(config)
    save_file(
        {name: tensor.to(dtype).contiguous() for name, tensor in tensors.items()},
        folder / "model.safetensors",
    )
    return folder


def write_script(folder: Path, script: Sequence[int], **changes: Any) -> Path:
    """A model that says `script`: after each of its tokens comes the next one, whatever was before.

    The script's tokens must differ. Attention and MLP add nothing; embeddings are unit vectors, and
    the output head looks up the token that follows.
    """
    assert len(set(script)) == len(script)
    config = {**LLAMA, "hidden_size": VOCAB, "tie_word_embeddings": False, **changes}
    weights = {name: torch.zeros_like(tensor) for name, tensor in llama_weights(config).items()}
    weights["model.embed_tokens.weight"] = torch.eye(VOCAB)
    weights["model.norm.weight"] = torch.ones(VOCAB)
    for before, after in pairwise(script):
        weights["lm_head.weight"][after, before] = 1.0
    return write_llama(
        folder, weights=weights, **{**changes, "hidden_size": VOCAB, "tie_word_embeddings": False}
    )


def load(folder: Path, *, slots: int = 4, **options: Any) -> CausalLM:
    """One thread: the machine that tests run on has others to do."""
    return CausalLM.load(folder, slots=slots, threads=1, **options)


class Transcript:
    """What an engine said of each job."""

    def __init__(self) -> None:
        self.events: list[EngineEvent] = []

    def of(self, job_id: str) -> list[EngineEvent]:
        return [event for event in self.events if event.job_id == job_id]

    def produced(self, job_id: str) -> list[Produced]:
        return [event for event in self.of(job_id) if isinstance(event, Produced)]

    def tokens(self, job_id: str) -> list[int]:
        return [token for event in self.produced(job_id) for token in event.token_ids]

    def text(self, job_id: str) -> str:
        return "".join(event.text for event in self.produced(job_id))

    def finished(self, job_id: str) -> Completed:
        last = self.of(job_id)[-1]
        assert isinstance(last, Completed), last
        return last

    def failed(self, job_id: str) -> Failed:
        last = self.of(job_id)[-1]
        assert isinstance(last, Failed), last
        return last


def run(engine: Any, *, after_step: Callable[[int], None] | None = None) -> Transcript:
    """Step until idle; `after_step` may submit and cancel."""
    transcript = Transcript()
    steps = 0
    while not engine.is_idle:
        transcript.events += engine.step()
        steps += 1
        if after_step is not None:
            after_step(steps)
        assert steps < 10_000, "the engine does not come to an end"
    return transcript
