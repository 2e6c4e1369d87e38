"""Vectors against transformers' BERT on random weights, and against common sense on real ones."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file

from capanode.engines.base import Completed, EngineRefusal, ModelLoadError, Started
from capanode.engines.embedding import TextEmbedder
from protocol.codec import decode
from protocol.errors import Code
from protocol.features import Feature
from protocol.generation import GenerationInput
from protocol.payload import EmbeddingInput, EmbeddingOutput, tokens_digest
from protocol.pricing import Units
from tests.capanode.engines.tiny_models import Transcript, run

BERT: dict[str, Any] = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_act": "gelu",
    "hidden_size": 32,
    "intermediate_size": 64,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 40,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "type_vocab_size": 2,
    "vocab_size": 30,
}
TEXTS = ("ant", "bee ant bee", "cat " * 20, "dog", "ant bee cat dog")


def write_bert(folder: Path, **changes: Any) -> Path:
    config = {**BERT, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "ant", "bee", "cat", "dog"]
    plain: dict[str, Any] = {
        "version": "1.0",
        # As real models ship it; texts must be neither cut nor padded to this.
        "truncation": {
            "max_length": 8,
            "strategy": "LongestFirst",
            "stride": 0,
            "direction": "Right",
        },
        "padding": {
            "strategy": {"Fixed": 8},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "[PAD]",
        },
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": "[CLS]", "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
                {"SpecialToken": {"id": "[SEP]", "type_id": 0}},
            ],
            "pair": [
                {"Sequence": {"id": "A", "type_id": 0}},
                {"Sequence": {"id": "B", "type_id": 1}},
            ],
            "special_tokens": {
                "[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]},
            },
        },
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: number for number, word in enumerate(words)},
            "unk_token": "[UNK]",
        },
    }
    (folder / "tokenizer.json").write_text(json.dumps(plain))
    generator = torch.Generator().manual_seed(3)
    hidden, inner = config["hidden_size"], config["intermediate_size"]

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).mul_(0.3)

    weights = {
        "embeddings.word_embeddings.weight": random(config["vocab_size"], hidden),
        "embeddings.position_embeddings.weight": random(config["max_position_embeddings"], hidden),
        "embeddings.token_type_embeddings.weight": random(2, hidden),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(config["num_hidden_layers"]):
        name = f"encoder.layer.{layer}"
        norms += [f"{name}.attention.output.LayerNorm", f"{name}.output.LayerNorm"]
        for part, rows, columns in (
            ("attention.self.query", hidden, hidden),
            ("attention.self.key", hidden, hidden),
            ("attention.self.value", hidden, hidden),
            ("attention.output.dense", hidden, hidden),
            ("intermediate.dense", inner, hidden),
            ("output.dense", hidden, inner),
        ):
            weights[f"{name}.{part}.weight"] = random(rows, columns)
            weights[f"{name}.{part}.bias"] = random(rows)
    for norm in norms:
        weights[f"{norm}.weight"] = 1 + random(hidden)
        weights[f"{norm}.bias"] = random(hidden)
    save_file(weights, folder / "model.safetensors")
    return folder


def load(folder: Path) -> TextEmbedder:
    return TextEmbedder.load(folder, slots=4, threads=1)


def vectors(transcript: Transcript, job_id: str) -> npt.NDArray[np.float32]:
    (produced,) = transcript.produced(job_id)
    output = decode(EmbeddingOutput, produced.data)
    return np.stack([np.frombuffer(vector, "<f4") for vector in output.vectors])


def embed(engine: TextEmbedder, *texts: str, normalize: bool = True) -> npt.NDArray[np.float32]:
    engine.submit("job", EmbeddingInput(texts, normalize))
    return vectors(run(engine), "job")


@pytest.mark.slow
def test_vectors_are_the_means_of_transformers_states(tmp_path: Path) -> None:
    # Imported here because it takes two seconds, which the other tests need not wait for.
    from transformers import BertModel  # noqa: PLC0415

    folder = write_bert(tmp_path)
    reference: Any = BertModel.from_pretrained(folder, add_pooling_layer=False)
    found = embed(load(folder), *TEXTS, normalize=False)
    ids = {"ant": 4, "bee": 5, "cat": 6, "dog": 7}
    for text, vector in zip(TEXTS, found, strict=True):
        tokens = torch.tensor([[2, *(ids[word] for word in text.split()), 3]])
        with torch.no_grad():
            expected = reference(tokens).last_hidden_state[0].mean(0)
        np.testing.assert_allclose(vector, expected.numpy(), atol=2e-6)


def test_first_token_pooling_is_not_the_mean(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    mean = embed(load(folder), *TEXTS)
    (folder / "1_Pooling").mkdir()
    config = folder / "1_Pooling" / "config.json"
    config.write_text(
        json.dumps({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    assert np.abs(embed(load(folder), *TEXTS) - mean).max() > 0.01
    config.write_text(json.dumps({"pooling_mode": "cls"}))
    assert np.abs(embed(load(folder), *TEXTS) - mean).max() > 0.01


@pytest.mark.parametrize(
    ("file", "content", "word"),
    [
        ("1_Pooling/config.json", {"pooling_mode_weightedmean_tokens": True}, "weightedmean"),
        (
            "1_Pooling/config.json",
            {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True},
            "cls_token",
        ),
        ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "weightedmean"),
        ("1_Pooling/config.json", {"pooling_mode": ["mean"]}, "mean"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "Dense"),
        ("modules.json", [7], "list of objects"),
        ("sentence_bert_config.json", {"max_seq_length": 41}, "max_seq_length"),
    ],
)
def test_what_would_change_the_vectors_in_silence_is_refused(
    tmp_path: Path, file: str, content: object, word: str
) -> None:
    folder = write_bert(tmp_path)
    (folder / file).parent.mkdir(exist_ok=True)
    (folder / file).write_text(json.dumps(content))
    with pytest.raises(ModelLoadError, match=word):
        load(folder)


def test_a_model_for_lower_case_reads_it(tmp_path: Path) -> None:
    folder = write_bert(tmp_path)
    (folder / "sentence_bert_config.json").write_text(json.dumps({"do_lower_case": True}))
    engine = load(folder)
    np.testing.assert_array_equal(embed(engine, "ANT Bee"), embed(engine, "ant bee"))


def test_a_text_embeds_alike_in_any_company(tmp_path: Path) -> None:
    engine = load(write_bert(tmp_path))
    together = embed(engine, *TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(embed(engine, text)[0], vector, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-6)


def test_jobs_share_steps_and_a_short_one_does_not_wait_for_a_long_one(tmp_path: Path) -> None:
    engine = load(write_bert(tmp_path))
    engine.submit("long", EmbeddingInput(("cat " * 30,) * 256))
    engine.submit("short", EmbeddingInput(("ant",)))
    first = engine.step()
    assert [event.job_id for event in first if isinstance(event, Completed)] == ["short"]
    assert [event.job_id for event in first if isinstance(event, Started)] == ["long", "short"]
    transcript = run(engine)
    assert transcript.finished("long") == Completed("long", "complete", Units(256 * 32))
    assert vectors(transcript, "long").shape == (256, 32)


def test_units_are_tokens_and_are_told_at_the_start(tmp_path: Path) -> None:
    engine = load(write_bert(tmp_path))
    engine.submit("job", EmbeddingInput(("ant bee", "cat")))
    assert run(engine).of("job")[0] == Started(
        "job", Units(input_tokens=4 + 3), tokens_digest(((2, 4, 5, 3), (2, 6, 3)))
    )


def test_a_cancelled_job_is_gone(tmp_path: Path) -> None:
    engine = load(write_bert(tmp_path))
    engine.submit("job", EmbeddingInput(("cat " * 30,) * 256))
    engine.step()
    engine.cancel("job")
    engine.cancel("job")
    assert engine.is_idle
    assert engine.step() == []


def test_wrong_inputs_are_refused(tmp_path: Path) -> None:
    engine = load(write_bert(tmp_path))
    for texts in (("ant", "cat " * 39), ("x" * 1_000_000,)):
        with pytest.raises(EngineRefusal) as caught:
            engine.submit("job", EmbeddingInput(texts))
        assert caught.value.code == Code.PROMPT_TOO_LONG
    with pytest.raises(EngineRefusal) as caught:
        engine.submit("job", GenerationInput(max_tokens=1, prompt="x"))
    assert caught.value.code == Code.INVALID_INPUT
    assert engine.is_idle
    assert embed(engine, "cat " * 38).shape == (1, 32)


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["GPT2Model"]},
        {"hidden_act": "relu"},
        {"position_embedding_type": "relative_key"},
        {"num_attention_heads": 5},
        {"layer_norm_eps": 5},
        {"hidden_size": 33},
    ],
)
def test_a_model_that_is_not_run_exactly_is_refused(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    folder = write_bert(tmp_path)
    (folder / "config.json").write_text(json.dumps({**BERT, **changes}))
    with pytest.raises(ModelLoadError):
        load(folder)


def write_scorer(folder: Path) -> Path:
    """`write_bert` with a head that scores pairs."""
    write_bert(folder, architectures=["BertForSequenceClassification"])
    bare = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(4)
    save_file(
        {
            **{f"bert.{name}": tensor for name, tensor in bare.items()},
            "bert.pooler.dense.weight": torch.randn((32, 32), generator=generator),
            "bert.pooler.dense.bias": torch.randn(32, generator=generator),
            "classifier.weight": torch.randn((1, 32), generator=generator),
            "classifier.bias": torch.randn(1, generator=generator),
        },
        folder / "model.safetensors",
    )
    return folder


def test_a_cross_encoder_scores_each_text_with_the_query(tmp_path: Path) -> None:
    engine = load(write_scorer(tmp_path))
    assert engine.info.features == (Feature.PAIR_SCORES,)
    assert engine.info.dimensions == 1
    engine.submit("job", EmbeddingInput(TEXTS, query="bee ant"))
    transcript = run(engine)
    scores = vectors(transcript, "job")
    assert scores.shape == (len(TEXTS), 1)
    assert ((scores > 0) & (scores < 1)).all()
    started = transcript.of("job")[0]
    # Each pair is two texts, whose words the tokenizer counts without marks.
    words = sum(2 + len(text.split()) for text in TEXTS)
    assert isinstance(started, Started)
    assert started.input_units == Units(input_tokens=words)
    engine.submit("other", EmbeddingInput(TEXTS, query="dog"))
    assert np.abs(vectors(run(engine), "other") - scores).max() > 1e-4
    engine.submit("raw", EmbeddingInput(TEXTS, normalize=False, query="bee ant"))
    raw = vectors(run(engine), "raw")
    np.testing.assert_allclose(1 / (1 + np.exp(-raw)), scores, atol=1e-6)


def test_a_query_is_for_cross_encoders_and_they_need_one(tmp_path: Path) -> None:
    scorer, embedder = tmp_path / "scorer", tmp_path / "embedder"
    scorer.mkdir()
    embedder.mkdir()
    for engine, query in (
        (load(write_scorer(scorer)), None),
        (load(write_bert(embedder)), "ant"),
    ):
        with pytest.raises(EngineRefusal) as caught:
            engine.submit("job", EmbeddingInput(("bee",), query=query))
        assert caught.value.code == Code.INVALID_INPUT
        assert engine.is_idle


def test_a_pair_that_is_too_long_is_refused(tmp_path: Path) -> None:
    engine = load(write_scorer(tmp_path))
    for query, text in (("ant " * 20, "bee " * 21), ("ant", "x" * 100_000), ("x" * 100_000, "a")):
        with pytest.raises(EngineRefusal) as caught:
            engine.submit("job", EmbeddingInput((text,), query=query))
        assert caught.value.code == Code.PROMPT_TOO_LONG


@pytest.mark.slow
@pytest.mark.models
def test_minilm_finds_the_similar_sentences(demo_models: Callable[[str], Path]) -> None:
    engine = load(demo_models("all-minilm-l6-v2"))
    assert engine.info.context_tokens == 256
    found = embed(
        engine, "A cat sits on the mat.", "A feline rests on a rug.", "Stocks fell sharply today."
    )
    assert found.shape == (3, 384)
    similarities = found @ found.T
    assert similarities[0, 1] > 0.5
    assert similarities[0, 2] < 0.2
