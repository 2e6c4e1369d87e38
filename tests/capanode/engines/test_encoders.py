"""Each encoder against transformers on random weights, and what no encoder here runs."""

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from capanode.engines.base import ModelLoadError
from capanode.engines.encoders.load import ARCHITECTURES, load_encoder
from capanode.engines.encoders.pooling import Pooling, pool
from capanode.engines.encoders.text_batch import TextBatch, TokenizedText
from capanode.tasks import EMBEDDING_DECODERS, NODE_TASKS, task_of_architecture
from protocol.messages import Task

CPU = torch.device("cpu")
VOCAB, HIDDEN = 60, 32
SIZES = {"vocab_size": VOCAB, "hidden_size": HIDDEN, "num_hidden_layers": 3}
BERT = {**SIZES, "num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 64}
MODERN = {
    **SIZES,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 512,
    "local_attention": 12,
    "pad_token_id": 0,
}
QWEN = {
    **SIZES,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
# The classes of transformers and what to build them with; lengths that pass the edges of each.
MODELS: list[tuple[str, str, dict[str, Any], tuple[int, ...]]] = [
    ("BertModel", "BertConfig", BERT, (1, 3, 3, 17, 64)),
    ("RobertaModel", "RobertaConfig", {**BERT, "type_vocab_size": 1}, (1, 2, 9, 62)),
    ("XLMRobertaModel", "XLMRobertaConfig", {**BERT, "type_vocab_size": 1}, (5, 5, 5)),
    ("CamembertModel", "CamembertConfig", {**BERT, "type_vocab_size": 1}, (4, 7)),
    ("ModernBertModel", "ModernBertConfig", MODERN, (1, 5, 19, 20, 300, 310)),
    ("ModernBertModel", "ModernBertConfig", {**MODERN, "attention_bias": True}, (2, 30)),
    ("Qwen3Model", "Qwen3Config", QWEN, (1, 2, 9, 10, 41)),
    # As sentence-transformers publishes it: with the decoder's names of weights.
    ("Qwen3ForCausalLM", "Qwen3Config", QWEN, (7, 12)),
]
PAIRS: list[tuple[str, str, dict[str, Any]]] = [
    ("BertForSequenceClassification", "BertConfig", {**BERT, "num_labels": 1}),
    ("RobertaForSequenceClassification", "RobertaConfig", {**BERT, "num_labels": 1}),
    ("XLMRobertaForSequenceClassification", "XLMRobertaConfig", {**BERT, "num_labels": 1}),
    ("ModernBertForSequenceClassification", "ModernBertConfig", {**MODERN, "num_labels": 1}),
    (
        "ModernBertForSequenceClassification",
        "ModernBertConfig",
        {**MODERN, "num_labels": 1, "classifier_pooling": "mean", "classifier_bias": True},
    ),
]


def make(folder: Path, model: str, config: str, options: dict[str, Any]) -> Any:
    """A reference with random weights, norms and biases included, saved to `folder`."""
    import transformers  # noqa: PLC0415  # two seconds

    torch.manual_seed(5)
    reference = getattr(transformers, model)(getattr(transformers, config)(**options)).eval()
    with torch.no_grad():
        for parameter in reference.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    reference.save_pretrained(folder)
    return reference


def texts_of(lengths: Sequence[int], *, has_types: bool = False) -> list[TokenizedText]:
    generator = torch.Generator().manual_seed(9)
    # From 4 on: RoBERTa takes the place of a token from how many are not padding.
    ids = [torch.randint(4, VOCAB, (n,), generator=generator).tolist() for n in lengths]
    return [TokenizedText(one, [0, 1][: len(one)] * len(one) if has_types else []) for one in ids]


def states(encoded: Tensor, texts: Sequence[TokenizedText]) -> list[Tensor]:
    ends = list(accumulate(map(len, texts)))
    return [encoded[end - len(text) : end] for end, text in zip(ends, texts, strict=True)]


@pytest.mark.slow
@pytest.mark.parametrize(("model", "config", "options", "lengths"), MODELS)
def test_states_are_those_of_transformers(
    tmp_path: Path, model: str, config: str, options: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    reference = make(tmp_path, model, config, options)
    texts = texts_of(lengths)
    with torch.inference_mode():
        encoder = load_encoder(tmp_path, CPU).encoder
        found = states(encoder.encode(TextBatch(texts, CPU)), texts)
        for text, own in zip(texts, found, strict=True):
            encoded = getattr(reference, "model", reference)(torch.tensor([text.ids]))
            expected = encoded.last_hidden_state[0]
            torch.testing.assert_close(own, expected, atol=2e-5, rtol=1e-4)
    assert encoder.tokens_max >= max(lengths)


@pytest.mark.slow
@pytest.mark.parametrize(("model", "config", "options"), PAIRS)
def test_scores_of_pairs_are_those_of_transformers(
    tmp_path: Path, model: str, config: str, options: dict[str, Any]
) -> None:
    reference = make(tmp_path, model, config, options)
    has_types = model.startswith("Bert")
    texts = [
        TokenizedText(text.ids, [0] * 3 + [1] * (len(text) - 3) if has_types else [])
        for text in texts_of((4, 9, 9, 20, 33))
    ]
    with torch.inference_mode():
        loaded = load_encoder(tmp_path, CPU)
        assert loaded.head is not None
        batch = TextBatch(texts, CPU)
        found = loaded.head(pool(loaded.encoder.encode(batch), batch, loaded.pooling))
        for text, own in zip(texts, found, strict=True):
            given = {"input_ids": torch.tensor([text.ids])}
            if text.types:
                given["token_type_ids"] = torch.tensor([text.types])
            torch.testing.assert_close(own, reference(**given).logits[0], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("pooling", "expected"),
    [
        (Pooling.MEAN, [[1.0, 2.0], [6.0, 0.0]]),
        (Pooling.FIRST, [[1.0, 2.0], [4.0, -3.0]]),
        (Pooling.LAST, [[1.0, 2.0], [8.0, 3.0]]),
        (Pooling.MAX, [[1.0, 2.0], [8.0, 3.0]]),
    ],
)
def test_a_text_is_pooled_over_its_own_tokens(pooling: Pooling, expected: list[Any]) -> None:
    batch = TextBatch([TokenizedText([5], []), TokenizedText([6, 7], [])], CPU)
    rows = torch.full((batch.rows, 2), 99.0)
    rows[:3] = torch.tensor([[1.0, 2.0], [4.0, -3.0], [8.0, 3.0]])
    torch.testing.assert_close(pool(rows, batch, pooling), torch.tensor(expected))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ModernBertModel", {**MODERN, "hidden_activation": "relu"}),
        ("ModernBertModel", {**MODERN, "layer_types": ["full_attention"]}),
        ("ModernBertModel", {**MODERN, "layer_types": [[], {}, 1]}),
        ("ModernBertModel", {**MODERN, "rope_parameters": {"full_attention": {}}}),
        ("ModernBertModel", {**MODERN, "rope_scaling": {"rope_type": "yarn"}}),
        ("Qwen3Model", {**QWEN, "use_sliding_window": True}),
        ("Qwen3Model", {**QWEN, "num_key_value_heads": 3}),
        ("Qwen3Model", {**QWEN, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}),
        ("Qwen3Model", {**QWEN, "rms_norm_eps": 0.0}),
        ("RobertaModel", {**BERT, "pad_token_id": 64}),
        ("RobertaModel", {**BERT, "pad_token_id": -1}),
        ("BertModel", {**BERT, "is_decoder": True}),
        ("BertModel", {**BERT, "add_cross_attention": True}),
        ("BertModel", {**BERT, "a_field_of_tomorrow": 3}),
        ("Qwen3Model", {**QWEN, "attention_bias": True}),
        ("DebertaV2Model", BERT),
        (7, BERT),
    ],
)
def test_what_is_not_run_exactly_is_refused(
    tmp_path: Path, name: object, config: dict[str, Any]
) -> None:
    from safetensors.torch import save_file  # noqa: PLC0415

    save_file({"nothing": torch.zeros(1)}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [name], **config}))
    with pytest.raises(ModelLoadError):
        load_encoder(tmp_path, CPU)


def test_the_store_admits_what_the_engine_runs() -> None:
    admitted = {*NODE_TASKS[Task.EMBEDDING].architectures, *EMBEDDING_DECODERS}
    assert admitted == set(ARCHITECTURES)
    for name in EMBEDDING_DECODERS:
        assert task_of_architecture(name) is Task.CAUSAL_LM
        assert task_of_architecture(name, is_sentence_encoder=True) is Task.EMBEDDING
