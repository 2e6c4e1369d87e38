"""From a model's folder to its encoder: which architectures there are, and where each keeps its
weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from capanode.engines.base import ModelLoadError
from capanode.engines.config_fields import ConfigFields
from capanode.engines.encoders.bert import BertConfig, BertModel
from capanode.engines.encoders.encoder import Encoder, EncoderWeights
from capanode.engines.encoders.modern_bert import ModernBertConfig, ModernBertModel
from capanode.engines.encoders.pair_scores import (
    ScoreHead,
    bert_head,
    modern_bert_head,
    modern_bert_pooling,
    roberta_head,
)
from capanode.engines.encoders.pooling import Pooling, read_pooling
from capanode.engines.encoders.qwen3 import Qwen3Config, Qwen3Model
from capanode.engines.weights import Weights, read_json

_Build = Callable[[ConfigFields, EncoderWeights, torch.device], Encoder]
_MakeHead = Callable[[ConfigFields, EncoderWeights], ScoreHead]


@dataclass(frozen=True, slots=True)
class LoadedEncoder:
    """`head` is there where the model scores pairs; its pooling is then the head's."""

    encoder: Encoder
    pooling: Pooling
    head: ScoreHead | None


@dataclass(frozen=True, slots=True)
class _Architecture:
    """`prefixes` are where the encoder's weights may lie: a checkpoint of the encoder alone has
    none, one with a head the family's name."""

    build: _Build
    prefixes: tuple[str, ...]
    make_head: _MakeHead | None = None
    head_pooling: Callable[[ConfigFields], Pooling] = lambda _: Pooling.FIRST


def _bert(fields: ConfigFields, weights: EncoderWeights, _: torch.device) -> Encoder:
    return BertModel(BertConfig.parse(fields, counts_from_padding=False), weights)


def _roberta(fields: ConfigFields, weights: EncoderWeights, _: torch.device) -> Encoder:
    return BertModel(BertConfig.parse(fields, counts_from_padding=True), weights)


def _modern_bert(fields: ConfigFields, weights: EncoderWeights, device: torch.device) -> Encoder:
    return ModernBertModel(ModernBertConfig.parse(fields), weights, device)


def _qwen3(fields: ConfigFields, weights: EncoderWeights, device: torch.device) -> Encoder:
    return Qwen3Model(Qwen3Config.parse(fields), weights, device)


_BERT = _Architecture(_bert, ("", "bert."))
_ROBERTA = _Architecture(_roberta, ("", "roberta."))
_ROBERTA_PAIRS = _Architecture(_roberta, ("roberta.",), roberta_head)
_MODERN_BERT = _Architecture(_modern_bert, ("", "model."))
_QWEN3 = _Architecture(_qwen3, ("", "model."))

ARCHITECTURES: Mapping[str, _Architecture] = {
    "BertModel": _BERT,
    "RobertaModel": _ROBERTA,
    "XLMRobertaModel": _ROBERTA,
    "CamembertModel": _ROBERTA,
    "ModernBertModel": _MODERN_BERT,
    "Qwen3Model": _QWEN3,
    "Qwen3ForCausalLM": _QWEN3,
    "BertForSequenceClassification": _Architecture(_bert, ("bert.",), bert_head),
    "RobertaForSequenceClassification": _ROBERTA_PAIRS,
    "XLMRobertaForSequenceClassification": _ROBERTA_PAIRS,
    "ModernBertForSequenceClassification": _Architecture(
        _modern_bert, ("model.",), modern_bert_head, modern_bert_pooling
    ),
}


def load_encoder(model_dir: Path, device: torch.device) -> LoadedEncoder:
    """Raises ModelLoadError."""
    fields = ConfigFields(read_json(model_dir / "config.json"))
    names = fields.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    architecture = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if architecture is None:
        raise ModelLoadError(f"the architecture {str(name)[:64]!r} embeds nothing here")
    weights = Weights(model_dir)
    prefix = _prefix_of(architecture, weights)
    encoder = architecture.build(fields, EncoderWeights(weights, prefix, device), device)
    head, pooling = None, Pooling.FIRST
    if architecture.make_head is None:
        pooling = read_pooling(model_dir)
    else:
        # What sentence-transformers applies to a score: a job says itself what it wants.
        fields.ignore(
            ("problem_type", "sentence_transformers", "sbert_ce_default_activation_function")
        )
        head = architecture.make_head(fields, EncoderWeights(weights, "", device))
        pooling = architecture.head_pooling(fields)
    fields.refuse_unread()
    return LoadedEncoder(encoder, pooling, head)


def _prefix_of(architecture: _Architecture, weights: Weights) -> str:
    """The longest prefix that some tensor has."""
    found = (p for p in architecture.prefixes[::-1] if any(n.startswith(p) for n in weights))
    return next(found, architecture.prefixes[0])
