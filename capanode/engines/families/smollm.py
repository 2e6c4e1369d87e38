"""SmolLM3: Llama in which every fourth layer is not rotated (NoPE); those may have a window."""

from capanode.engines.base import ModelLoadError
from capanode.engines.config_fields import ConfigFields
from capanode.engines.decoder_config import DecoderConfig
from capanode.engines.families.common import (
    head_dim,
    layer_count,
    read_decoder,
    read_rope,
    read_windows,
)


def read_smollm3(fields: ConfigFields) -> DecoderConfig:
    has_bias = fields.flag("attention_bias")
    is_rotated = _rotated_layers(fields)
    return read_decoder(
        fields,
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        has_mlp_bias=fields.flag("mlp_bias"),
        ties_embeddings=fields.flag("tie_word_embeddings", True),
        ropes=(read_rope(fields, head_dim(fields), default_theta=2_000_000.0),),
        layer_ropes=tuple(0 if rotated else None for rotated in is_rotated),
        windows=_windows(fields, is_rotated),
    )


def _windows(fields: ConfigFields, is_rotated: list[bool]) -> tuple[int | None, ...]:
    """A window that the config names counts only if it says so."""
    window_tokens = fields.optional_size("sliding_window")
    if not fields.flag("use_sliding_window"):
        fields.get("layer_types")
        return (None,) * len(is_rotated)
    slides = [window_tokens is not None and not rotated for rotated in is_rotated]
    return read_windows(fields, window_tokens=window_tokens, slides=slides)


def _rotated_layers(fields: ConfigFields) -> list[bool]:
    layers = layer_count(fields)
    interval = fields.size("no_rope_layer_interval", 4)
    marks = fields.get("no_rope_layers")
    if marks is None:
        return [(layer + 1) % interval != 0 for layer in range(layers)]
    if not isinstance(marks, list) or len(marks) < layers:
        raise ModelLoadError("config.json: no_rope_layers is not a list for all layers")
    if any(mark not in (0, 1) for mark in marks):
        raise ModelLoadError("config.json: no_rope_layers holds more than 0 and 1")
    return [mark == 1 for mark in marks[:layers]]
