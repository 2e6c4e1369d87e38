"""Llama-shaped models of any size with random weights, as the store lays a model out: speed depends
on shapes alone.
"""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sim.byte_tokenizer import write_byte_tokenizer

_END = 256
_BF16_BYTES = 2
# Written over and over: to draw billions of numbers would take longer than the benchmark.
_BLOCK_NUMBERS = 4 * 1024 * 1024
_SEED = 7


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Of a decoder with grouped heads; `context` is the longest that it takes."""

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    context: int = 8_192

    @property
    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Names as Hugging Face's checkpoints have them, with shapes."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            "model.norm.weight": (self.hidden,),
            "lm_head.weight": (self.vocabulary, self.hidden),
        }
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        for layer in range(self.layers):
            name = f"model.layers.{layer}"
            shapes |= {
                f"{name}.input_layernorm.weight": (self.hidden,),
                f"{name}.post_attention_layernorm.weight": (self.hidden,),
                f"{name}.self_attn.q_proj.weight": (queries, self.hidden),
                f"{name}.self_attn.k_proj.weight": (keys, self.hidden),
                f"{name}.self_attn.v_proj.weight": (keys, self.hidden),
                f"{name}.self_attn.o_proj.weight": (self.hidden, queries),
                f"{name}.mlp.gate_proj.weight": (self.intermediate, self.hidden),
                f"{name}.mlp.up_proj.weight": (self.intermediate, self.hidden),
                f"{name}.mlp.down_proj.weight": (self.hidden, self.intermediate),
            }
        return shapes

    @property
    def step_bytes(self) -> int:
        """Weights that one decode step reads, in bfloat16: all but the table of embeddings."""
        read = sum(_count(shape) for name, shape in self.tensors.items() if "embed" not in name)
        return read * _BF16_BYTES

    @property
    def token_bytes(self) -> int:
        """Keys and values of one token, in bfloat16."""
        return 2 * self.layers * self.kv_heads * self.head_dim * _BF16_BYTES


TINY = ModelShape("tiny", 2, 64, 128, 4, 2, 16, 320, context=512)
# Llama-3.2-1B's and Llama-3.1-8B's.
ONE_B = ModelShape("1b", 16, 2_048, 8_192, 32, 8, 64, 128_256)
EIGHT_B = ModelShape("8b", 32, 4_096, 14_336, 32, 8, 128, 128_256)


def write_random_model(folder: Path, shape: ModelShape) -> Path:
    """A folder that engines and transformers load. Returns it."""
    folder.mkdir()
    folder.chmod(0o755)
    write_byte_tokenizer(folder, {_END: "<|end|>"}, end="<|end|>", chat_template=None)
    (folder / "config.json").write_text(json.dumps(_config(shape)))
    _write_weights(folder / "model.safetensors", shape)
    return folder


def _config(shape: ModelShape) -> dict[str, Any]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocabulary,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "bos_token_id": _END,
        "eos_token_id": _END,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def _write_weights(path: Path, shape: ModelShape) -> None:
    """A safetensors file: the length of a JSON header, the header, and the numbers."""
    header, at = {}, 0
    for name, dimensions in shape.tensors.items():
        size = _count(dimensions) * _BF16_BYTES
        header[name] = {"dtype": "BF16", "shape": dimensions, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    generator = torch.Generator().manual_seed(_SEED)
    # Small enough that no layer overflows.
    numbers = torch.randn(_BLOCK_NUMBERS, generator=generator).mul_(0.02).to(torch.bfloat16)
    block = memoryview(numbers.view(torch.uint8).numpy().tobytes())
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        while at > 0:
            at -= file.write(block[: min(at, len(block))])


def _count(shape: tuple[int, ...]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
