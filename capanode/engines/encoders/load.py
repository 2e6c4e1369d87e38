"""From a model's folder to its encoder: which architectures there are, and where each keeps its
weights."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from capanode.engines.base import ModelLoadError
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

_Plain = Mapping[str, Any]
_Build = Callable[[_Plain, EncoderWeights, torch.device], Encoder]
_MakeHead = Callable[[_Plain, EncoderWeights], ScoreHead]


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
    head_pooling: Callable[[_Plain], Pooling] = lambda _: Pooling.FIRST


def _bert(plain: _Plain, weights: EncoderWeights, _: torch.device) -> Encoder:
    return BertModel(BertConfig.parse(plain, counts_from_padding=False), weights)


def _roberta(plain: _Plain, weights: EncoderWeights, _: torch.device) -> Encoder:
    return BertModel(BertConfig.parse(plain, counts_from_padding=True), weights)


def _modern_bert(plain: _Plain, weights: EncoderWeights, device: torch.device) -> Encoder:
    return ModernBertModel(ModernBertConfig.parse(plain), weights, device)


def _qwen3(plain: _Plain, weights: EncoderWeights, device: torch.device) -> Encoder:
    return Qwen3Model(Qwen3Config.parse(plain), weights, device)


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
    "BertForSequenceClassification": _Architecture(_bert, ("bert.",), bert_head),
    "RobertaForSequenceClassification": _ROBERTA_PAIRS,
    "XLMRobertaForSequenceClassification": _ROBERTA_PAIRS,
    "ModernBertForSequenceClassification": _Architecture(
        _modern_bert, ("model.",), modern_bert_head, modern_bert_pooling
    ),
}


def load_encoder(model_dir: Path, device: torch.device) -> LoadedEncoder:
    """Raises ModelLoadError."""
    plain = read_json(model_dir / "config.json")
    names = plain.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    architecture = ARCHITECTURES.get(name) if isinstance(name, str) else None
    if architecture is None:
        raise ModelLoadError(f"the architecture {str(name)[:64]!r} embeds nothing here")
    weights = Weights(model_dir)
    prefix = _prefix_of(architecture, weights)
    encoder = architecture.build(plain, EncoderWeights(weights, prefix, device), device)
    if architecture.make_head is None:
        return LoadedEncoder(encoder, read_pooling(model_dir), None)
    head = architecture.make_head(plain, EncoderWeights(weights, "", device))
    return LoadedEncoder(encoder, architecture.head_pooling(plain), head)


def _prefix_of(architecture: _Architecture, weights: Weights) -> str:
    """The longest prefix that some tensor has."""
    found = (p for p in architecture.prefixes[::-1] if any(n.startswith(p) for n in weights))
    return next(found, architecture.prefixes[0])
