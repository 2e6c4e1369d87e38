"""Qwen3 as an encoder (Qwen3-Embedding): a decoder whose last state stands for the text.

Source: Zhang et al. 2025 (Qwen3 Embedding); names of weights as in transformers.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from capanode.engines.base import ModelLoadError
from capanode.engines.config_fields import ConfigFields
from capanode.engines.encoders.encoder import EncoderWeights
from capanode.engines.encoders.epsilon import read_epsilon
from capanode.engines.encoders.rotary import Rotary
from capanode.engines.encoders.text_batch import TextBatch
from capanode.engines.linear import Linear
from capanode.engines.profile import QWEN3_ENCODER

# The tables of positions grow with this, and no text of a job is longer.
_POSITIONS_MAX = 32_768
_ROPE_BASE = 10_000.0

# Without a sliding window the first three say nothing; the head is not used.
_HARMLESS = ("layer_types", "max_window_layers", "sliding_window", "tie_word_embeddings")


@dataclass(frozen=True, slots=True)
class Qwen3Config:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    positions: int
    rope_base: float
    norm_eps: float

    @classmethod
    def parse(cls, fields: ConfigFields) -> "Qwen3Config":
        """Raises ModelLoadError if the config is not one that `Qwen3Model` runs exactly."""
        fields.word("hidden_act", "silu", ("silu",))
        if fields.flag("use_sliding_window"):
            raise ModelLoadError("config.json: use_sliding_window is not run here")
        fields.ignore(_HARMLESS)
        rope = fields.section("rope_parameters")
        if rope is not None:
            rope.word("rope_type", "default", ("default",))
        base = (fields if rope is None else rope).positive("rope_theta", _ROPE_BASE)
        if rope is not None:
            rope.refuse_unread()
        heads = fields.size("num_attention_heads")
        config = cls(
            vocab_size=fields.size("vocab_size"),
            hidden_size=fields.size("hidden_size"),
            intermediate_size=fields.size("intermediate_size"),
            layers=fields.size("num_hidden_layers"),
            heads=heads,
            kv_heads=fields.size("num_key_value_heads", heads),
            head_width=fields.size("head_dim", 128),
            positions=min(fields.size("max_position_embeddings"), _POSITIONS_MAX),
            rope_base=base,
            norm_eps=read_epsilon(fields, "rms_norm_eps", 1e-6),
        )
        if config.heads % config.kv_heads or config.head_width % 2:
            raise ModelLoadError("config.json: the heads cannot be shared out")
        return config


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: Tensor
    qkv: Linear
    query_norm: Tensor
    key_norm: Tensor
    output: Linear
    mlp_norm: Tensor
    gate_up: Linear
    down: Linear


class Qwen3Model:
    """An Encoder whose tokens see those before them."""

    name = QWEN3_ENCODER

    def __init__(self, config: Qwen3Config, weights: EncoderWeights, device: torch.device) -> None:
        self._config = config
        self._words = weights.take("embed_tokens.weight", config.vocab_size, config.hidden_size)
        self._norm = weights.take("norm.weight", config.hidden_size)
        self._rotary = Rotary(config.rope_base, config.head_width, config.positions, device)
        self._layers = [self._take_layer(weights, index) for index in range(config.layers)]

    @property
    def dimensions(self) -> int:
        return self._config.hidden_size

    @property
    def tokens_max(self) -> int:
        return self._config.positions

    def encode(self, batch: TextBatch) -> Tensor:
        config, rotary = self._config, self._rotary
        sizes = (config.heads, config.kv_heads, config.kv_heads)
        places = rotary.at(batch.positions)
        x = functional.embedding(batch.tokens, self._words)
        for layer in self._layers:
            qkv = layer.qkv(self._scaled(x, layer.attention_norm))
            heads = qkv.view(batch.rows, -1, config.head_width)
            query, key, value = heads.split_with_sizes(sizes, 1)
            attended = batch.attend(
                rotary.rotate(self._scaled(query, layer.query_norm), places),
                rotary.rotate(self._scaled(key, layer.key_norm), places),
                value,
                is_causal=True,
            )
            x = layer.output(attended).add_(x)
            gate, up = layer.gate_up(self._scaled(x, layer.mlp_norm)).chunk(2, -1)
            x = layer.down(functional.silu(gate).mul_(up)).add_(x)
        return self._scaled(x, self._norm)

    def _scaled(self, x: Tensor, weight: Tensor) -> Tensor:
        return functional.rms_norm(x, weight.shape, weight, self._config.norm_eps)

    def _take_layer(self, weights: EncoderWeights, index: int) -> _Layer:
        name, config = f"layers.{index}", self._config
        hidden, inner, width = config.hidden_size, config.intermediate_size, config.head_width
        queries, keys = config.heads * width, config.kv_heads * width
        attention, mlp = f"{name}.self_attn", f"{name}.mlp"
        parts = [f"{attention}.{part}" for part in ("q_proj", "k_proj", "v_proj")]
        gates = [f"{mlp}.gate_proj", f"{mlp}.up_proj"]
        return _Layer(
            attention_norm=weights.take(f"{name}.input_layernorm.weight", hidden),
            qkv=weights.joined(parts, [queries, keys, keys], hidden, has_bias=False),
            query_norm=weights.take(f"{attention}.q_norm.weight", width),
            key_norm=weights.take(f"{attention}.k_norm.weight", width),
            output=weights.linear(f"{attention}.o_proj", hidden, queries, has_bias=False),
            mlp_norm=weights.take(f"{name}.post_attention_layernorm.weight", hidden),
            gate_up=weights.joined(gates, [inner, inner], hidden, has_bias=False),
            down=weights.linear(f"{mlp}.down_proj", hidden, inner, has_bias=False),
        )
