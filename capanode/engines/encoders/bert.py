"""BERT and what differs from it only in how positions are counted: RoBERTa, XLM-RoBERTa, CamemBERT.

Source: Devlin et al. 2018 (BERT), Liu et al. 2019 (RoBERTa); names of weights as in transformers.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from capanode.engines.base import ModelLoadError
from capanode.engines.config_fields import ConfigFields
from capanode.engines.encoders.encoder import EncoderWeights, Norm
from capanode.engines.encoders.epsilon import read_epsilon
from capanode.engines.encoders.text_batch import TextBatch
from capanode.engines.linear import Linear
from capanode.engines.profile import BERT

# Dropouts, and BERT's pooler, which embeddings do not pass through.
_HARMLESS = (
    "attention_probs_dropout_prob",
    "directionality",
    "hidden_dropout_prob",
    "output_past",
    "pooler_fc_size",
    "pooler_num_attention_heads",
    "pooler_num_fc_layers",
    "pooler_size_per_head",
    "pooler_type",
    "tie_word_embeddings",
)


@dataclass(frozen=True, slots=True)
class BertConfig:
    """`first_position` is the row of the first token in the table of positions."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    positions: int
    types: int
    norm_eps: float
    first_position: int

    @classmethod
    def parse(cls, fields: ConfigFields, *, counts_from_padding: bool) -> "BertConfig":
        """RoBERTa's positions begin after the padding token's number. Raises ModelLoadError if the
        config is not one that `BertModel` runs exactly."""
        fields.word("hidden_act", "gelu", ("gelu",))
        fields.word("position_embedding_type", "absolute", ("absolute",))
        fields.ignore(_HARMLESS)
        padding = fields.get("pad_token_id")
        padding = 1 if padding is None else padding
        if type(padding) is not int or not 0 <= padding < 1_000:
            raise ModelLoadError("config.json: pad_token_id is out of range")
        first = padding + 1 if counts_from_padding else 0
        config = cls(
            vocab_size=fields.size("vocab_size"),
            hidden_size=fields.size("hidden_size"),
            intermediate_size=fields.size("intermediate_size"),
            layers=fields.size("num_hidden_layers"),
            heads=fields.size("num_attention_heads"),
            positions=fields.size("max_position_embeddings"),
            types=fields.size("type_vocab_size"),
            norm_eps=read_epsilon(fields, "layer_norm_eps", 1e-12),
            first_position=first,
        )
        if config.hidden_size % config.heads:
            raise ModelLoadError("the number of heads does not divide the hidden size")
        if config.positions <= first:
            raise ModelLoadError("config.json: max_position_embeddings leaves no position")
        return config


@dataclass(frozen=True, slots=True)
class _Layer:
    qkv: Linear
    output: Linear
    output_norm: Norm
    up: Linear
    down: Linear
    down_norm: Norm


class BertModel:
    """An Encoder."""

    name = BERT

    def __init__(self, config: BertConfig, weights: EncoderWeights) -> None:
        self._config = config
        hidden = config.hidden_size
        positions = weights.take("embeddings.position_embeddings.weight", config.positions, hidden)
        self._types = weights.take("embeddings.token_type_embeddings.weight", config.types, hidden)
        # A single text is all of type 0, so its vector is part of every position's.
        self._positions = positions[config.first_position :] + self._types[0]
        self._words = weights.take("embeddings.word_embeddings.weight", config.vocab_size, hidden)
        self._norm = weights.norm("embeddings.LayerNorm", hidden, config.norm_eps)
        self._layers = [self._take_layer(weights, index) for index in range(config.layers)]

    @property
    def dimensions(self) -> int:
        return self._config.hidden_size

    @property
    def tokens_max(self) -> int:
        return self._config.positions - self._config.first_position

    def encode(self, batch: TextBatch) -> Tensor:
        heads, hidden = self._config.heads, self._config.hidden_size
        embedded = functional.embedding(batch.tokens, self._words)
        embedded.add_(functional.embedding(batch.positions, self._positions))
        if batch.types is not None and self._config.types > 1:
            embedded.add_(functional.embedding(batch.types, self._types - self._types[0]))
        x = self._norm(embedded)
        for layer in self._layers:
            query, key, value = layer.qkv(x).view(-1, 3, heads, hidden // heads).unbind(1)
            x = layer.output_norm(layer.output(batch.attend(query, key, value)).add_(x))
            x = layer.down_norm(layer.down(functional.gelu(layer.up(x))).add_(x))
        return x

    def _take_layer(self, weights: EncoderWeights, index: int) -> _Layer:
        name, config = f"encoder.layer.{index}", self._config
        hidden, inner = config.hidden_size, config.intermediate_size
        parts = [f"{name}.attention.self.{part}" for part in ("query", "key", "value")]
        return _Layer(
            qkv=weights.joined(parts, [hidden] * 3, hidden, has_bias=True),
            output=weights.linear(f"{name}.attention.output.dense", hidden, hidden),
            output_norm=weights.norm(f"{name}.attention.output.LayerNorm", hidden, config.norm_eps),
            up=weights.linear(f"{name}.intermediate.dense", inner, hidden),
            down=weights.linear(f"{name}.output.dense", hidden, inner),
            down_norm=weights.norm(f"{name}.output.LayerNorm", hidden, config.norm_eps),
        )
