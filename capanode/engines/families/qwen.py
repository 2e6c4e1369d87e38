"""Qwen 2 and 2.5: Llama with biases on queries, keys and values. Qwen 3: norms on queries and keys
in their place. Upper layers may have a window."""

from capanode.engines.config_fields import ConfigFields
from capanode.engines.decoder_config import DecoderConfig
from capanode.engines.families.common import head_dim, layer_count, read_decoder, read_windows


def read_qwen2(fields: ConfigFields) -> DecoderConfig:
    return read_decoder(fields, has_qkv_bias=True, windows=_windows(fields))


def read_qwen3(fields: ConfigFields) -> DecoderConfig:
    has_bias = fields.flag("attention_bias")
    width = head_dim(fields, default=128)
    return read_decoder(
        fields,
        head_dim=width,
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        has_head_norms=True,
        windows=_windows(fields),
    )


def _windows(fields: ConfigFields) -> tuple[int | None, ...]:
    """A window that the config names counts only if it says so."""
    layers = layer_count(fields)
    window_tokens = fields.optional_size("sliding_window")
    first = fields.get("max_window_layers")
    first = first if type(first) is int else 28
    slides = fields.flag("use_sliding_window")
    return read_windows(
        fields,
        window_tokens=window_tokens if slides else None,
        slides=[slides and layer >= first for layer in range(layers)],
    )
