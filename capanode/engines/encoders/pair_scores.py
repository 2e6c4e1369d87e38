"""The heads of cross-encoders: from the states of a query and a document read together to how well
the one answers the other."""

from collections.abc import Callable

from torch import Tensor
from torch.nn import functional

from capanode.engines.config_fields import ConfigFields
from capanode.engines.encoders.encoder import EncoderWeights
from capanode.engines.encoders.epsilon import read_epsilon
from capanode.engines.encoders.pooling import Pooling

# From the pooled states [pairs, hidden] to scores [pairs, 1], before a sigmoid.
ScoreHead = Callable[[Tensor], Tensor]


def bert_head(fields: ConfigFields, weights: EncoderWeights) -> ScoreHead:
    """BertForSequenceClassification: BERT's pooler, then one product."""
    return _tanh_head(fields, weights, "bert.pooler.dense", "classifier")


def roberta_head(fields: ConfigFields, weights: EncoderWeights) -> ScoreHead:
    """(XLM)RobertaForSequenceClassification."""
    return _tanh_head(fields, weights, "classifier.dense", "classifier.out_proj")


def modern_bert_head(fields: ConfigFields, weights: EncoderWeights) -> ScoreHead:
    """ModernBertForSequenceClassification."""
    fields.word("classifier_activation", "gelu", ("gelu",))
    hidden = fields.size("hidden_size")
    dense = weights.linear("head.dense", hidden, hidden, has_bias=fields.flag("classifier_bias"))
    norm = weights.norm(
        "head.norm",
        hidden,
        read_epsilon(fields, "norm_eps", 1e-5),
        has_bias=fields.flag("norm_bias"),
    )
    score = weights.linear("classifier", 1, hidden)
    return lambda pooled: score(norm(functional.gelu(dense(pooled))))


def modern_bert_pooling(fields: ConfigFields) -> Pooling:
    """Raises ModelLoadError."""
    word = fields.word("classifier_pooling", "cls", ("cls", "mean"))
    return Pooling.FIRST if word == "cls" else Pooling.MEAN


def _tanh_head(
    fields: ConfigFields, weights: EncoderWeights, dense_name: str, score_name: str
) -> ScoreHead:
    hidden = fields.size("hidden_size")
    dense = weights.linear(dense_name, hidden, hidden)
    score = weights.linear(score_name, 1, hidden)
    return lambda pooled: score(dense(pooled).tanh())
