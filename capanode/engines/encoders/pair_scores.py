"""The heads of cross-encoders: from the states of a query and a document read together to how well
the one answers the other."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.nn import functional

from capanode.engines.base import ModelLoadError
from capanode.engines.encoders.config_fields import (
    check_choice,
    read_epsilon,
    read_flag,
    read_size,
)
from capanode.engines.encoders.encoder import EncoderWeights
from capanode.engines.encoders.pooling import Pooling

# From the pooled states [pairs, hidden] to scores [pairs, 1], before a sigmoid.
ScoreHead = Callable[[Tensor], Tensor]


def bert_head(plain: Mapping[str, Any], weights: EncoderWeights) -> ScoreHead:
    """BertForSequenceClassification: BERT's pooler, then one product."""
    return _tanh_head(plain, weights, "bert.pooler.dense", "classifier")


def roberta_head(plain: Mapping[str, Any], weights: EncoderWeights) -> ScoreHead:
    """(XLM)RobertaForSequenceClassification."""
    return _tanh_head(plain, weights, "classifier.dense", "classifier.out_proj")


def modern_bert_head(plain: Mapping[str, Any], weights: EncoderWeights) -> ScoreHead:
    """ModernBertForSequenceClassification."""
    check_choice(plain, "classifier_activation", "gelu")
    hidden = read_size(plain, "hidden_size")
    dense = weights.linear(
        "head.dense", hidden, hidden, has_bias=read_flag(plain, "classifier_bias")
    )
    norm = weights.norm(
        "head.norm",
        hidden,
        read_epsilon(plain, "norm_eps", 1e-5),
        has_bias=read_flag(plain, "norm_bias"),
    )
    score = weights.linear("classifier", 1, hidden)
    return lambda pooled: score(norm(functional.gelu(dense(pooled))))


def modern_bert_pooling(plain: Mapping[str, Any]) -> Pooling:
    """Raises ModelLoadError."""
    try:
        return {"cls": Pooling.FIRST, "mean": Pooling.MEAN}[
            str(plain.get("classifier_pooling", "cls"))
        ]
    except KeyError:
        raise ModelLoadError("config.json: classifier_pooling is neither cls nor mean") from None


def _tanh_head(
    plain: Mapping[str, Any], weights: EncoderWeights, dense_name: str, score_name: str
) -> ScoreHead:
    hidden = read_size(plain, "hidden_size")
    dense = weights.linear(dense_name, hidden, hidden)
    score = weights.linear(score_name, 1, hidden)
    return lambda pooled: score(dense(pooled).tanh())
