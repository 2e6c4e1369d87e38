"""Gemma 2 and the text model of Gemma 3: norms on both sides of attention and MLP, embeddings that
are scaled, and layers with and without a window by turns.

Gemma 2 bends scores and logits; Gemma 3 norms queries and keys instead, and rotates by another base
where a layer has a window.
"""

from typing import Any

from capanode.engines.base import ModelLoadError
from capanode.engines.config_fields import ConfigFields
from capanode.engines.decoder_config import Activation, DecoderConfig, Rope
from capanode.engines.families.common import (
    head_dim,
    layer_count,
    read_decoder,
    read_rope,
    read_windows,
)

_GEMMA3_THETA = 1_000_000.0
_GEMMA3_LOCAL_THETA = 10_000.0


def read_gemma2(fields: ConfigFields) -> DecoderConfig:
    return _read_gemma(
        fields,
        windows=_windows(fields, pattern=2),
        softcap=fields.optional_positive("attn_logit_softcapping", 50.0),
        logit_softcap=fields.optional_positive("final_logit_softcapping", 30.0),
    )


def read_gemma3(fields: ConfigFields) -> DecoderConfig:
    pattern = fields.size("sliding_window_pattern", 6)
    # The same in files that newer versions of transformers wrote.
    pattern = fields.size("_sliding_window_pattern", pattern)
    windows = _windows(fields, pattern=pattern)
    return _read_gemma(
        fields,
        windows=windows,
        softcap=fields.optional_positive("attn_logit_softcapping"),
        logit_softcap=fields.optional_positive("final_logit_softcapping"),
        has_head_norms=True,
        ropes=_gemma3_ropes(fields),
        layer_ropes=tuple(0 if window is None else 1 for window in windows),
    )


def _read_gemma(fields: ConfigFields, **differences: Any) -> DecoderConfig:
    if fields.flag("use_bidirectional_attention"):
        raise ModelLoadError("config.json: use_bidirectional_attention is not run here")
    # Older files call the activation `hidden_act`, and "gelu" there means this one all the same.
    names = ["gelu_pytorch_tanh"]
    fields.word("hidden_act", names[0], [*names, "gelu"])
    has_bias = fields.flag("attention_bias")
    return read_decoder(
        fields,
        activation=Activation(fields.word("hidden_activation", names[0], names)),
        ties_embeddings=fields.flag("tie_word_embeddings", True),
        head_dim=head_dim(fields, default=256),
        scale=fields.positive("query_pre_attn_scalar", 256.0) ** -0.5,
        embedding_scale=float(fields.size("hidden_size")) ** 0.5,
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        has_output_norms=True,
        has_offset_norms=True,
        **differences,
    )


def _windows(fields: ConfigFields, *, pattern: int) -> tuple[int | None, ...]:
    """Every `pattern`-th layer sees everything."""
    slides = [bool((layer + 1) % pattern) for layer in range(layer_count(fields))]
    window_tokens = fields.size("sliding_window", 4096)
    return read_windows(fields, window_tokens=window_tokens, slides=slides)


def _gemma3_ropes(fields: ConfigFields) -> tuple[Rope, Rope]:
    """The rotation of layers that see everything, then that of those with a window. Newer files
    keep them in one object by the layers' type."""
    width = head_dim(fields, default=256)
    local_theta = fields.positive("rope_local_base_freq", _GEMMA3_LOCAL_THETA)
    both = fields.section("rope_parameters")
    if both is None or (both.get("full_attention"), both.get("sliding_attention")) == (None, None):
        everywhere = read_rope(fields, width, default_theta=_GEMMA3_THETA)
        return everywhere, Rope(local_theta, everywhere.channels)
    ropes = []
    for key, theta in (("full_attention", _GEMMA3_THETA), ("sliding_attention", local_theta)):
        one = ConfigFields({"rope_parameters": both.get(key)})
        ropes.append(read_rope(one, width, default_theta=theta))
    both.refuse_unread()
    fields.get("rope_theta")
    return ropes[0], ropes[1]
