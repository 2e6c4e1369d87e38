"""What a Llama-like model's config.json says, checked; and the rotation frequencies it implies."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from capanode.engines.attention_rules import AttentionRules, LayerRule
from capanode.engines.base import ModelLoadError

ARCHITECTURES = frozenset({"LlamaForCausalLM", "Qwen2ForCausalLM", "MistralForCausalLM"})
_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# Far above any dense model that one machine serves; keeps a hostile config from asking for memory.
_SIZE_MAX = 1 << 24


@dataclass(frozen=True, slots=True)
class RopeScaling:
    """Llama 3's stretching of low frequencies; other kinds are refused or plain (`linear`)."""

    kind: str
    factor: float
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_context_tokens: int = 8192


@dataclass(frozen=True, slots=True)
class DecoderConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    context_tokens: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling | None
    ties_embeddings: bool
    has_qkv_bias: bool
    has_output_bias: bool
    has_mlp_bias: bool
    dtype: torch.dtype

    @property
    def attention(self) -> AttentionRules:
        """How each layer attends."""
        return AttentionRules(self.heads, (LayerRule(self.head_dim**-0.5),) * self.layers)

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> "DecoderConfig":
        """Raises ModelLoadError if the config is not one that `DecoderModel` runs exactly."""
        architecture = next(iter(plain.get("architectures") or ["none"]))
        if architecture not in ARCHITECTURES:
            raise ModelLoadError(f"architecture {str(architecture)[:64]!r} is not run here")
        if plain.get("hidden_act", "silu") != "silu":
            raise ModelLoadError("only the silu activation is run here")
        if plain.get("use_sliding_window") or (
            architecture == "MistralForCausalLM" and plain.get("sliding_window")
        ):
            raise ModelLoadError("sliding-window attention is not run here")
        heads = _size(plain, "num_attention_heads")
        hidden_size = _size(plain, "hidden_size")
        theta, scaling = _rope(plain)
        is_qwen = architecture == "Qwen2ForCausalLM"
        attention_bias = bool(plain.get("attention_bias", False))
        config = cls(
            vocab_size=_size(plain, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=_size(plain, "intermediate_size"),
            layers=_size(plain, "num_hidden_layers"),
            heads=heads,
            kv_heads=_size(plain, "num_key_value_heads", heads),
            head_dim=_size(plain, "head_dim", hidden_size // heads),
            context_tokens=_size(plain, "max_position_embeddings"),
            norm_eps=_positive(plain, "rms_norm_eps", 1e-6),
            rope_theta=theta,
            rope_scaling=scaling,
            ties_embeddings=bool(plain.get("tie_word_embeddings", False)),
            has_qkv_bias=attention_bias or is_qwen,
            has_output_bias=attention_bias and not is_qwen,
            has_mlp_bias=bool(plain.get("mlp_bias", False)),
            dtype=_dtype(plain),
        )
        if config.heads % config.kv_heads or config.head_dim % 2:
            raise ModelLoadError("the numbers of heads do not fit together")
        return config


def rope_frequencies(config: DecoderConfig) -> Tensor:
    """Radians per position for each pair of channels, float32 [head_dim / 2]."""
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    if scaling.kind == "linear":
        return frequencies / scaling.factor
    wavelengths = 2 * math.pi / frequencies
    low = scaling.original_context_tokens / scaling.low_freq_factor
    high = scaling.original_context_tokens / scaling.high_freq_factor
    blend = (scaling.original_context_tokens / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    stretched = torch.where(wavelengths > low, frequencies / scaling.factor, blended)
    return torch.where(wavelengths < high, frequencies, stretched)


def _rope(plain: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Theta and scaling, from the old keys or from the newer `rope_parameters`."""
    parameters = plain.get("rope_parameters") or plain.get("rope_scaling") or {}
    if not isinstance(parameters, dict):
        raise ModelLoadError("the rope parameters are not an object")
    theta = _positive(parameters, "rope_theta", _positive(plain, "rope_theta", 10_000.0))
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(kind, _positive(parameters, "factor", 1.0))
    if kind != "llama3":
        raise ModelLoadError(f"rope type {str(kind)[:32]!r} is not run here")
    return theta, RopeScaling(
        kind,
        factor=_positive(parameters, "factor", 8.0),
        low_freq_factor=_positive(parameters, "low_freq_factor", 1.0),
        high_freq_factor=_positive(parameters, "high_freq_factor", 4.0),
        original_context_tokens=_size(parameters, "original_max_position_embeddings", 8192),
    )


def _dtype(plain: Mapping[str, Any]) -> torch.dtype:
    name = plain.get("dtype") or plain.get("torch_dtype") or "bfloat16"
    if name not in _DTYPES:
        raise ModelLoadError(f"weights of type {str(name)[:32]!r} are not run here")
    return _DTYPES[name]


def _size(plain: Mapping[str, Any], key: str, default: int | None = None) -> int:
    value = plain.get(key)
    value = default if value is None else value
    if type(value) is not int or not 0 < value <= _SIZE_MAX:
        raise ModelLoadError(f"config.json: {key} is missing or out of range")
    return value


def _positive(plain: Mapping[str, Any], key: str, default: float) -> float:
    value = plain.get(key)
    value = default if value is None else value
    if type(value) not in (int, float) or not 0 < value < float("inf"):
        raise ModelLoadError(f"config.json: {key} is out of range")
    return float(value)
