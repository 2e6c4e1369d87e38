"""ModernBERT: rotary positions, gated products, and layers that see only a window.

Source: Warner et al. 2024; names of weights as in transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from capanode.engines.base import ModelLoadError
from capanode.engines.encoders.config_fields import (
    check_choice,
    read_base,
    read_epsilon,
    read_flag,
    read_size,
)
from capanode.engines.encoders.encoder import EncoderWeights, Norm
from capanode.engines.encoders.rotary import Rotary
from capanode.engines.encoders.text_batch import TextBatch
from capanode.engines.linear import Linear
from capanode.engines.profile import MODERN_BERT

_BASES = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}
_OLD_BASES = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
_GLOBAL_EVERY = 3


@dataclass(frozen=True, slots=True)
class ModernBertConfig:
    """`window_tokens` are seen on either side in a layer that `sees_all` is not true of."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    heads: int
    positions: int
    window_tokens: int
    sees_all: tuple[bool, ...]
    bases: Mapping[str, float]
    norm_eps: float
    has_norm_bias: bool
    has_attention_bias: bool
    has_mlp_bias: bool

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> "ModernBertConfig":
        """Raises ModelLoadError if the config is not one that `ModernBertModel` runs exactly."""
        check_choice(plain, "hidden_activation", "gelu")
        config = cls(
            vocab_size=read_size(plain, "vocab_size"),
            hidden_size=read_size(plain, "hidden_size"),
            intermediate_size=read_size(plain, "intermediate_size"),
            heads=read_size(plain, "num_attention_heads"),
            positions=read_size(plain, "max_position_embeddings"),
            window_tokens=read_size(plain, "local_attention", 128) // 2,
            sees_all=_layers(plain),
            bases={kind: _base(plain, kind) for kind in _BASES},
            norm_eps=read_epsilon(plain, "norm_eps", 1e-5),
            has_norm_bias=read_flag(plain, "norm_bias"),
            has_attention_bias=read_flag(plain, "attention_bias"),
            has_mlp_bias=read_flag(plain, "mlp_bias"),
        )
        if config.hidden_size % (2 * config.heads):
            raise ModelLoadError("the number of heads does not divide the hidden size")
        return config


@dataclass(frozen=True, slots=True)
class _Layer:
    attention_norm: Norm | None
    qkv: Linear
    output: Linear
    mlp_norm: Norm
    up_gate: Linear
    down: Linear
    sees_all: bool


class ModernBertModel:
    """An Encoder."""

    name = MODERN_BERT

    def __init__(
        self, config: ModernBertConfig, weights: EncoderWeights, device: torch.device
    ) -> None:
        self._config = config
        hidden = config.hidden_size
        self._words = weights.take("embeddings.tok_embeddings.weight", config.vocab_size, hidden)
        self._norm = self._take_norm(weights, "embeddings.norm")
        self._final_norm = self._take_norm(weights, "final_norm")
        width = hidden // config.heads
        self._rotary = {
            kind == "full_attention": Rotary(base, width, config.positions, device)
            for kind, base in config.bases.items()
        }
        self._layers = [
            self._take_layer(weights, index, sees_all)
            for index, sees_all in enumerate(config.sees_all)
        ]

    @property
    def dimensions(self) -> int:
        return self._config.hidden_size

    @property
    def tokens_max(self) -> int:
        return self._config.positions

    def encode(self, batch: TextBatch) -> Tensor:
        config = self._config
        places = {sees_all: table.at(batch.positions) for sees_all, table in self._rotary.items()}
        x = self._norm(functional.embedding(batch.tokens, self._words))
        for layer in self._layers:
            rotary, place = self._rotary[layer.sees_all], places[layer.sees_all]
            normed = x if layer.attention_norm is None else layer.attention_norm(x)
            width = config.hidden_size // config.heads
            query, key, value = layer.qkv(normed).view(-1, 3, config.heads, width).unbind(1)
            attended = batch.attend(
                rotary.rotate(query, place),
                rotary.rotate(key, place),
                value,
                window_tokens=None if layer.sees_all else config.window_tokens,
            )
            x = layer.output(attended).add_(x)
            up, gate = layer.up_gate(layer.mlp_norm(x)).chunk(2, -1)
            x = layer.down(functional.gelu(up).mul_(gate)).add_(x)
        return self._final_norm(x)

    def _take_norm(self, weights: EncoderWeights, name: str) -> Norm:
        config = self._config
        return weights.norm(
            name, config.hidden_size, config.norm_eps, has_bias=config.has_norm_bias
        )

    def _take_layer(self, weights: EncoderWeights, index: int, sees_all: bool) -> _Layer:
        name, config = f"layers.{index}", self._config
        hidden, inner = config.hidden_size, config.intermediate_size
        attention, mlp = config.has_attention_bias, config.has_mlp_bias
        return _Layer(
            # The first layer takes what the embedding's norm left.
            attention_norm=self._take_norm(weights, f"{name}.attn_norm") if index else None,
            qkv=weights.linear(f"{name}.attn.Wqkv", 3 * hidden, hidden, has_bias=attention),
            output=weights.linear(f"{name}.attn.Wo", hidden, hidden, has_bias=attention),
            mlp_norm=self._take_norm(weights, f"{name}.mlp_norm"),
            up_gate=weights.linear(f"{name}.mlp.Wi", 2 * inner, hidden, has_bias=mlp),
            down=weights.linear(f"{name}.mlp.Wo", hidden, inner, has_bias=mlp),
            sees_all=sees_all,
        )


def _layers(plain: Mapping[str, Any]) -> tuple[bool, ...]:
    """Which layers see the whole text. Raises ModelLoadError."""
    count = read_size(plain, "num_hidden_layers")
    kinds = plain.get("layer_types")
    if kinds is None:
        every = read_size(plain, "global_attn_every_n_layers", _GLOBAL_EVERY)
        return tuple(index % every == 0 for index in range(count))
    is_list = isinstance(kinds, list) and len(kinds) == count
    if not is_list or not all(isinstance(kind, str) and kind in _BASES for kind in kinds):
        raise ModelLoadError("config.json: layer_types does not name the kind of each layer")
    return tuple(kind == "full_attention" for kind in kinds)


def _base(plain: Mapping[str, Any], kind: str) -> float:
    """Of the newer form of config.json, or the older one. Raises ModelLoadError."""
    parameters = plain.get("rope_parameters")
    if parameters is None:
        check_choice(plain, "rope_scaling", None)
        return read_base(plain, _OLD_BASES[kind], _BASES[kind])
    of_kind = parameters.get(kind) if isinstance(parameters, dict) else None
    if not isinstance(of_kind, dict):
        raise ModelLoadError(f"config.json: rope_parameters lacks {kind}")
    check_choice(of_kind, "rope_type", "default")
    return read_base(of_kind, "rope_theta", _BASES[kind])
