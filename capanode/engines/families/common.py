"""What the families' config files have in common: sizes, rotations and windows."""

import math
from collections.abc import Sequence
from typing import Any

from capanode.engines.attention_rules import AttentionRules, LayerRule
from capanode.engines.base import ModelLoadError
from capanode.engines.config_fields import ConfigFields
from capanode.engines.decoder_config import (
    Activation,
    DecoderConfig,
    LinearScaling,
    Llama3Scaling,
    LongScaling,
    Rope,
)

_DTYPE_NAMES = ("bfloat16", "float16", "float32")
_LAYERS_MAX = 1024
_HEADS_MAX = 4096
_HEAD_DIM_MAX = 4096


def read_decoder(
    fields: ConfigFields,
    *,
    windows: Sequence[int | None] | None = None,
    scale: float | None = None,
    softcap: float | None = None,
    **differences: Any,
) -> DecoderConfig:
    """A DecoderConfig from the fields that all families name alike. `windows`, `scale` and
    `softcap` say how layers attend (see `LayerRule`); `differences` are fields of DecoderConfig
    that the family reads itself. Raises ModelLoadError."""
    heads = fields.size("num_attention_heads", most=_HEADS_MAX)
    layers = layer_count(fields)
    width = differences.get("head_dim") or head_dim(fields)
    scale = width**-0.5 if scale is None else scale
    read: dict[str, Any] = {
        "vocab_size": fields.size("vocab_size"),
        "hidden_size": fields.size("hidden_size"),
        "intermediate_size": fields.size("intermediate_size"),
        "layers": layers,
        "heads": heads,
        "kv_heads": fields.size("num_key_value_heads", heads, most=_HEADS_MAX),
        "head_dim": width,
        "context_tokens": fields.size("max_position_embeddings"),
        "norm_eps": fields.positive("rms_norm_eps", 1e-6),
        "ties_embeddings": fields.flag("tie_word_embeddings"),
        "dtype_name": _dtype_name(fields),
        "layer_ropes": (0,) * layers,
        "attention": AttentionRules(
            heads, tuple(LayerRule(scale, window, softcap) for window in windows or [None] * layers)
        ),
        **differences,
    }
    if "ropes" not in read:
        read["ropes"] = (read_rope(fields, width),)
    if "activation" not in read:
        read["activation"] = Activation(fields.word("hidden_act", "silu", ["silu"]))
    config = DecoderConfig(**read)
    if config.heads % config.kv_heads or config.head_dim % 2:
        raise ModelLoadError("the numbers of heads do not fit together")
    if len({rope.channels for rope in config.ropes}) > 1:
        raise ModelLoadError("layers that rotate different shares of a head are not run here")
    return config


def layer_count(fields: ConfigFields) -> int:
    return fields.size("num_hidden_layers", most=_LAYERS_MAX)


def head_dim(fields: ConfigFields, default: int | None = None) -> int:
    if default is None:
        heads = fields.size("num_attention_heads", most=_HEADS_MAX)
        default = fields.size("hidden_size") // heads
    return fields.size("head_dim", default, most=_HEAD_DIM_MAX)


def _dtype_name(fields: ConfigFields) -> str:
    """Newer files say `dtype`, older ones `torch_dtype`."""
    older = fields.word("torch_dtype", "bfloat16", _DTYPE_NAMES)
    return fields.word("dtype", older, _DTYPE_NAMES)


def read_windows(
    fields: ConfigFields, *, window_tokens: int | None, slides: Sequence[bool]
) -> tuple[int | None, ...]:
    """The window of each layer: `layer_types` says which layers have one, or else `slides`."""
    types = fields.get("layer_types")
    if types is not None:
        known = {"full_attention": False, "sliding_attention": True}
        if not isinstance(types, list) or len(types) != len(slides):
            raise ModelLoadError("config.json: layer_types does not name each layer's type")
        if not all(isinstance(kind, str) and kind in known for kind in types):
            raise ModelLoadError("config.json: layer_types names a kind that is not run here")
        slides = [known[kind] for kind in types]
    if any(slides) and window_tokens is None:
        raise ModelLoadError("config.json: layers have a window, but sliding_window is missing")
    return tuple(window_tokens if slide else None for slide in slides)


def read_rope(fields: ConfigFields, width: int, *, default_theta: float = 10_000.0) -> Rope:
    """From the older keys, or from the newer `rope_parameters`, for heads of this width."""
    theta = fields.positive("rope_theta", default_theta)
    share = fields.positive("partial_rotary_factor", 1.0)
    older, newer = fields.section("rope_scaling"), fields.section("rope_parameters")
    parameters = newer or older or ConfigFields({})
    share = parameters.positive("partial_rotary_factor", share)
    theta = parameters.positive("rope_theta", theta)
    channels = int(width * share)
    if not 0 < channels <= width or channels % 2:
        raise ModelLoadError("config.json: partial_rotary_factor is out of range")
    rope = Rope(theta, channels, _read_scaling(fields, parameters, channels))
    parameters.refuse_unread()
    return rope


def _read_scaling(
    fields: ConfigFields, parameters: ConfigFields, channels: int
) -> LinearScaling | Llama3Scaling | LongScaling | None:
    older = parameters.get("type")
    kind = parameters.get("rope_type") or older or "default"
    if kind == "default":
        return None
    if kind == "linear":
        return LinearScaling(parameters.positive("factor", 1.0))
    if kind == "llama3":
        return Llama3Scaling(
            factor=parameters.positive("factor", 8.0),
            low_freq_factor=parameters.positive("low_freq_factor", 1.0),
            high_freq_factor=parameters.positive("high_freq_factor", 4.0),
            original_context_tokens=parameters.size("original_max_position_embeddings", 8192),
        )
    if kind in ("longrope", "su"):
        return _read_long_scaling(fields, parameters, channels)
    raise ModelLoadError(f"rope type {str(kind)[:32]!r} is not run here")


def _read_long_scaling(
    fields: ConfigFields, parameters: ConfigFields, channels: int
) -> LongScaling:
    context = fields.size("max_position_embeddings")
    original = parameters.size(
        "original_max_position_embeddings",
        fields.size("original_max_position_embeddings", context),
    )
    factor = parameters.positive("factor", context / original)
    usual = math.sqrt(1 + math.log(factor) / math.log(original)) if factor > 1 < original else 1.0
    return LongScaling(
        short_factors=parameters.numbers("short_factor", channels // 2),
        long_factors=parameters.numbers("long_factor", channels // 2),
        original_context_tokens=original,
        attention_factor=parameters.positive("attention_factor", usual),
    )
