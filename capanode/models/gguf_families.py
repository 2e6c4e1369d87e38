"""The architectures of GGUF files that become models of ours: names of tensors and of settings.

Names and defaults that the files do not carry are llama.cpp's (llama-arch.cpp, llama-model.cpp).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from capanode.models.gguf_fields import GgufFields

_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEAD_NORMS = {"attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}


@dataclass(frozen=True, slots=True)
class GgufFamily:
    """`settings` reads what config.json says beside sizes."""

    architecture: str  # in config.json
    model_type: str
    settings: Callable[[GgufFields], dict[str, Any]]
    block_names: Mapping[str, str] = field(default_factory=lambda: _BLOCK_NAMES)
    # llama.cpp interleaves the two halves of each query and key head.
    is_interleaved: bool = True
    has_biases: bool = False


def _llama(fields: GgufFields) -> dict[str, Any]:
    return {"attention_bias": False, "mlp_bias": False}


def _qwen2(fields: GgufFields) -> dict[str, Any]:
    return {"use_sliding_window": False}


def _qwen3(fields: GgufFields) -> dict[str, Any]:
    return {"attention_bias": False, "use_sliding_window": False}


def _smollm3(fields: GgufFields) -> dict[str, Any]:
    return {
        "attention_bias": False,
        "mlp_bias": False,
        "no_rope_layer_interval": 4,
        "use_sliding_window": False,
    }


# By `general.architecture`. Mistral's files say llama.
GGUF_FAMILIES: Mapping[str, GgufFamily] = {
    "llama": GgufFamily("LlamaForCausalLM", "llama", _llama),
    "qwen2": GgufFamily("Qwen2ForCausalLM", "qwen2", _qwen2, is_interleaved=False, has_biases=True),
    "qwen3": GgufFamily(
        "Qwen3ForCausalLM",
        "qwen3",
        _qwen3,
        block_names={**_BLOCK_NAMES, **_HEAD_NORMS},
        is_interleaved=False,
    ),
    "smollm3": GgufFamily("SmolLM3ForCausalLM", "smollm3", _smollm3),
}
