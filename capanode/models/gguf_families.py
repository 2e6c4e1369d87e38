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
_GEMMA_NAMES = {
    **_BLOCK_NAMES,
    "ffn_norm": "pre_feedforward_layernorm",
    "post_attention_norm": "post_attention_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
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
    # llama.cpp adds the 1 to the norms that Gemma adds when it runs.
    has_offset_norms: bool = False
    # What it may say of rotations: `rope.scaling.type`, and a part of each head.
    scalings: frozenset[str] = frozenset()
    may_rotate_a_part: bool = False


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


def _gemma2(fields: GgufFields) -> dict[str, Any]:
    return {
        **_gemma(fields, large_layers=46),
        "attn_logit_softcapping": fields.number("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": fields.number("final_logit_softcapping", 30.0),
        "sliding_window": fields.natural("attention.sliding_window", 4096),
    }


def _gemma3(fields: GgufFields) -> dict[str, Any]:
    settings: dict[str, Any] = {
        **_gemma(fields, large_layers=62),
        "rope_local_base_freq": fields.number("rope.freq_base_swa", 10_000.0),
        "rope_theta": fields.number("rope.freq_base", 1_000_000.0),
        "sliding_window": fields.natural("attention.sliding_window"),
        "sliding_window_pattern": 6,
    }
    if fields.get("final_logit_softcapping") is not None:
        settings["final_logit_softcapping"] = fields.number("final_logit_softcapping")
    if fields.get("rope.scaling.type") == "linear":
        # Of layers that see everything; those with a window keep their rotation.
        factor = fields.number("rope.scaling.factor")
        settings["rope_scaling"] = {"factor": factor, "rope_type": "linear"}
    return settings


def _gemma(fields: GgufFields, *, large_layers: int) -> dict[str, Any]:
    """Scores are divided by the root of a head's width; in the largest model, known by its layers,
    of the model's width for each head."""
    heads, width = fields.natural("attention.head_count"), fields.natural("embedding_length")
    is_large = fields.natural("block_count") == large_layers
    return {
        "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": (
            width // heads if is_large else fields.natural("attention.key_length", 256)
        ),
    }


def _phi3(fields: GgufFields) -> dict[str, Any]:
    heads, width = fields.natural("attention.head_count"), fields.natural("embedding_length")
    head_dim = fields.natural("attention.key_length", width // heads)
    rotated = fields.natural("rope.dimension_count", head_dim)
    context = fields.natural("context_length")
    # Converters write 0 for none.
    has_window = fields.get("attention.sliding_window") not in (None, 0)
    return {
        "attention_bias": False,
        "original_max_position_embeddings": fields.natural(
            "rope.scaling.original_context_length", context
        ),
        "partial_rotary_factor": rotated / head_dim,
        "sliding_window": fields.natural("attention.sliding_window") if has_window else None,
    }


# By `general.architecture`. Mistral's files say llama.
GGUF_FAMILIES: Mapping[str, GgufFamily] = {
    "gemma2": GgufFamily(
        "Gemma2ForCausalLM",
        "gemma2",
        _gemma2,
        block_names=_GEMMA_NAMES,
        is_interleaved=False,
        has_offset_norms=True,
    ),
    "gemma3": GgufFamily(
        "Gemma3ForCausalLM",
        "gemma3_text",
        _gemma3,
        block_names={**_GEMMA_NAMES, **_HEAD_NORMS},
        is_interleaved=False,
        has_offset_norms=True,
        scalings=frozenset({"linear"}),
    ),
    "phi3": GgufFamily(
        "Phi3ForCausalLM",
        "phi3",
        _phi3,
        block_names={
            **_BLOCK_NAMES,
            "attn_qkv": "self_attn.qkv_proj",
            # Both, the gate first.
            "ffn_up": "mlp.gate_up_proj",
        },
        is_interleaved=False,
        scalings=frozenset({"longrope"}),
        may_rotate_a_part=True,
    ),
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
