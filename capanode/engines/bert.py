"""The BERT encoder as plain torch functions: token ids in, hidden states out."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from capanode.engines.base import ModelLoadError
from capanode.engines.linear import Linear, make_linear
from capanode.engines.weights import Weights

_SIZE_MAX = 1 << 24


@dataclass(frozen=True, slots=True)
class BertConfig:
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    positions: int
    types: int
    norm_eps: float

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> "BertConfig":
        """Raises ModelLoadError if the config is not one that `BertModel` runs exactly."""
        if "BertModel" not in (plain.get("architectures") or ()):
            raise ModelLoadError("only the BertModel architecture embeds here")
        if plain.get("hidden_act") != "gelu":
            raise ModelLoadError("only the gelu activation is run here")
        if plain.get("position_embedding_type", "absolute") != "absolute":
            raise ModelLoadError("only absolute positions are run here")
        eps = plain.get("layer_norm_eps", 1e-12)
        if type(eps) is not float or not 0 < eps < 1:
            raise ModelLoadError("config.json: layer_norm_eps is out of range")
        config = cls(
            vocab_size=_size(plain, "vocab_size"),
            hidden_size=_size(plain, "hidden_size"),
            intermediate_size=_size(plain, "intermediate_size"),
            layers=_size(plain, "num_hidden_layers"),
            heads=_size(plain, "num_attention_heads"),
            positions=_size(plain, "max_position_embeddings"),
            types=_size(plain, "type_vocab_size"),
            norm_eps=eps,
        )
        if config.hidden_size % config.heads:
            raise ModelLoadError("the number of heads does not divide the hidden size")
        return config


@dataclass(frozen=True, slots=True)
class _Norm:
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: Linear
    output: Linear
    output_norm: _Norm
    up: Linear
    down: Linear
    down_norm: _Norm


class BertModel:
    """Weights and the forward pass, in float32."""

    def __init__(self, config: BertConfig, weights: Weights, *, device: torch.device) -> None:
        self._config, self._device, self._weights = config, device, weights
        hidden = config.hidden_size
        types = self._take("embeddings.token_type_embeddings.weight", config.types, hidden)
        positions = self._take("embeddings.position_embeddings.weight", config.positions, hidden)
        # A single text is all of type 0, so its vector is part of every position's.
        self._positions = positions + types[0]
        self._words = self._take("embeddings.word_embeddings.weight", config.vocab_size, hidden)
        self._norm = self._take_norm("embeddings.LayerNorm")
        self._layers = [self._take_layer(index) for index in range(config.layers)]
        del self._weights  # The mapping of the files must not outlive loading.

    @property
    def dimensions(self) -> int:
        return self._config.hidden_size

    def encode(self, tokens: Tensor, mask: Tensor) -> Tensor:
        """Hidden states [texts, length, hidden] of `tokens` [texts, length]; `mask`, of the same
        shape, is true where there is a token and false where there is padding."""
        count, length = tokens.shape
        heads, hidden = self._config.heads, self._config.hidden_size
        embedded = functional.embedding(tokens, self._words) + self._positions[:length]
        x = self._norm(embedded).view(-1, hidden)
        visible = mask[:, None, None]
        for layer in self._layers:
            qkv = layer.qkv(x).view(count, length, 3, heads, hidden // heads)
            query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
            attended = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible)
            merged = attended.transpose(1, 2).reshape(-1, hidden)
            x = layer.output_norm(layer.output(merged).add_(x))
            x = layer.down_norm(layer.down(functional.gelu(layer.up(x))).add_(x))
        return x.view(count, length, hidden)

    def _take_layer(self, index: int) -> _Layer:
        name = f"encoder.layer.{index}"
        hidden, inner = self._config.hidden_size, self._config.intermediate_size
        parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        return _Layer(
            qkv=make_linear(
                torch.cat([self._take(f"{part}.weight", hidden, hidden) for part in parts]),
                torch.cat([self._take(f"{part}.bias", hidden) for part in parts]),
            ),
            output=self._take_linear(f"{name}.attention.output.dense", hidden, hidden),
            output_norm=self._take_norm(f"{name}.attention.output.LayerNorm"),
            up=self._take_linear(f"{name}.intermediate.dense", inner, hidden),
            down=self._take_linear(f"{name}.output.dense", hidden, inner),
            down_norm=self._take_norm(f"{name}.output.LayerNorm"),
        )

    def _take_linear(self, name: str, rows: int, columns: int) -> Linear:
        weight = self._take(f"{name}.weight", rows, columns)
        return make_linear(weight, self._take(f"{name}.bias", rows))

    def _take_norm(self, name: str) -> _Norm:
        hidden = self._config.hidden_size
        return _Norm(
            self._take(f"{name}.weight", hidden),
            self._take(f"{name}.bias", hidden),
            self._config.norm_eps,
        )

    def _take(self, name: str, *shape: int) -> Tensor:
        return self._weights.take(name, shape, torch.float32).to(self._device, copy=True)


def _size(plain: Mapping[str, Any], key: str) -> int:
    value = plain.get(key)
    if type(value) is not int or not 0 < value <= _SIZE_MAX:
        raise ModelLoadError(f"config.json: {key} is missing or out of range")
    return value
