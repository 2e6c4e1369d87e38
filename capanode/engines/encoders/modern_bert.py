"""ModernBERT: rotary positions, gated products, and layers that see only a window.

Source: Warner et al. 2024; names of weights as in transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from capanode.engines.base import ModelLoadError
from capanode.engines.config_fields import ConfigFields
from capanode.engines.encoders.encoder import EncoderWeights, Norm
from capanode.engines.encoders.epsilon import read_epsilon
from capanode.engines.encoders.rotary import Rotary
from capanode.engines.encoders.text_batch import TextBatch
from capanode.engines.linear import Linear
from capanode.engines.profile import MODERN_BERT

_BASES = {"full_attention": 160_000.0, "sliding_attention": 10_000.0}
_OLD_BASES = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}
_GLOBAL_EVERY = 3

# Dropouts, training, and heads for other tasks.
_HARMLESS = (
    "classifier_activation",
    "classifier_bias",
    "classifier_pooling",
    "cls_token_id",
    "decoder_bias",
    "deterministic_flash_attn",
    "embedding_dropout",
    "initializer_cutoff_factor",
    "layer_norm_eps",
    "mlp_dropout",
    "position_embedding_type",
    "reference_compile",
    "repad_logits_with_grad",
    "sparse_pred_ignore_index",
    "sparse_prediction",
    "tie_word_embeddings",
)


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
    def parse(cls, fields: ConfigFields) -> "ModernBertConfig":
        """Raises ModelLoadError if the config is not one that `ModernBertModel` runs exactly."""
        fields.word("hidden_activation", "gelu", ("gelu",))
        fields.ignore(_HARMLESS)
        config = cls(
            vocab_size=fields.size("vocab_size"),
            hidden_size=fields.size("hidden_size"),
            intermediate_size=fields.size("intermediate_size"),
            heads=fields.size("num_attention_heads"),
            positions=fields.size("max_position_embeddings"),
            window_tokens=fields.size("local_attention", 128) // 2,
            sees_all=_layers(fields),
            bases=_bases(fields),
            norm_eps=read_epsilon(fields, "norm_eps", 1e-5),
            has_norm_bias=fields.flag("norm_bias"),
            has_attention_bias=fields.flag("attention_bias"),
            has_mlp_bias=fields.flag("mlp_bias"),
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


def _layers(fields: ConfigFields) -> tuple[bool, ...]:
    """Which layers see the whole text. Raises ModelLoadError."""
    count = fields.size("num_hidden_layers")
    every = fields.size("global_attn_every_n_layers", _GLOBAL_EVERY)
    kinds = fields.get("layer_types")
    if kinds is None:
        return tuple(index % every == 0 for index in range(count))
    is_list = isinstance(kinds, list) and len(kinds) == count
    if not is_list or not all(isinstance(kind, str) and kind in _BASES for kind in kinds):
        raise ModelLoadError("config.json: layer_types does not name the kind of each layer")
    return tuple(kind == "full_attention" for kind in kinds)


def _bases(fields: ConfigFields) -> dict[str, float]:
    """Of the newer form of config.json, or the older one. Raises ModelLoadError."""
    parameters = fields.section("rope_parameters")
    if parameters is None:
        return {kind: fields.positive(_OLD_BASES[kind], base) for kind, base in _BASES.items()}
    found = {}
    for kind, base in _BASES.items():
        of_kind = parameters.section(kind)
        if of_kind is None:
            raise ModelLoadError(f"config.json: rope_parameters lacks {kind}")
        of_kind.word("rope_type", "default", ("default",))
        found[kind] = of_kind.positive("rope_theta", base)
        of_kind.refuse_unread()
    parameters.refuse_unread()
    return found
