"""Llama (and SmolLM2, which is one), and Mistral: Llama with a window on all layers or none."""

from capanode.engines.base import ModelLoadError
from capanode.engines.config_fields import ConfigFields
from capanode.engines.decoder_config import DecoderConfig
from capanode.engines.families.common import layer_count, read_decoder, read_windows


def read_llama(fields: ConfigFields) -> DecoderConfig:
    if fields.flag("rope_interleaved"):
        raise ModelLoadError("config.json: rope_interleaved is not run here")
    has_bias = fields.flag("attention_bias")
    return read_decoder(
        fields,
        has_qkv_bias=has_bias,
        has_output_bias=has_bias,
        has_mlp_bias=fields.flag("mlp_bias"),
    )


def read_mistral(fields: ConfigFields) -> DecoderConfig:
    window_tokens = fields.optional_size("sliding_window")
    slides = [window_tokens is not None] * layer_count(fields)
    return read_decoder(
        fields, windows=read_windows(fields, window_tokens=window_tokens, slides=slides)
    )
