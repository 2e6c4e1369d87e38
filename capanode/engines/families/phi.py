"""Phi 3, 3.5 and 4: Llama with fused weights in its files, a window on all layers or none,
LongRoPE, and in Phi-4-mini a rotation of three quarters of each head."""

from capanode.engines.config_fields import ConfigFields
from capanode.engines.decoder_config import DecoderConfig
from capanode.engines.families.common import layer_count, read_decoder


def read_phi3(fields: ConfigFields) -> DecoderConfig:
    # Kept beside the rotation; only LongRoPE uses it.
    fields.get("original_max_position_embeddings")
    window_tokens = fields.optional_size("sliding_window")
    return read_decoder(
        fields,
        has_qkv_bias=fields.flag("attention_bias"),
        has_fused_weights=True,
        windows=(window_tokens,) * layer_count(fields),
    )
