import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tokenizers import Regex, Tokenizer, pre_tokenizers

from capanode.engines.decoder import DecoderModel
from capanode.engines.decoder_config import LongScaling
from capanode.engines.families import read_decoder_config
from capanode.engines.grouped_matrix import GroupedMatrix
from capanode.engines.quantized_weights import MatrixReader
from capanode.engines.weight_scheme import read_weight_scheme
from capanode.engines.weights import Weights
from capanode.models.conversion import Conversion, convert_model
from capanode.models.convert_gguf import to_bfloat16
from capanode.models.errors import ConversionError, StoreFullError
from capanode.models.gguf_codes import group_offsets, group_scales, packed_codes
from capanode.models.progress import Progress, ignore_progress
from capanode.models.safetensors_file import HEADER_BYTES_MAX, TensorInfo, read_header
from protocol.messages import Task
from tests.capanode.model_makers import (
    MakesFile,
    hostile_pickle,
    layout_files,
    raw_safetensors,
    safetensors_bytes,
    write_files,
)

TOKENS = ["<|endoftext|>", "<|end|>", *"abĠ12x", "½", "Â", "ab", "Ġa"]
HEADS, KEY_HEADS, WIDTH, INNER = 2, 1, 64, 96


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "source").mkdir()
    return tmp_path / "source"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def convert(format_name: str, source: Path, target: Path) -> Conversion:
    return convert_model(format_name, source, target, progress=ignore_progress, timeout_s=60.0)


# GGUF


def as_llama_cpp_orders_rows(
    weights: np.ndarray[Any, np.dtype[np.float32]], heads: int
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """What llama.cpp's converter does to query and key weights."""
    rows, columns = weights.shape
    return (
        weights.reshape(heads, 2, rows // heads // 2, columns)
        .swapaxes(1, 2)
        .reshape(rows, columns)
        .copy()
    )


def tiny_weights() -> dict[str, np.ndarray[Any, np.dtype[np.float32]]]:
    rng = np.random.default_rng(1)
    shapes = {
        "token_embd": (len(TOKENS), WIDTH),
        "output_norm": (WIDTH,),
        "blk.0.attn_norm": (WIDTH,),
        "blk.0.attn_q": (WIDTH, WIDTH),
        "blk.0.attn_k": (WIDTH // HEADS * KEY_HEADS, WIDTH),
        "blk.0.attn_v": (WIDTH // HEADS * KEY_HEADS, WIDTH),
        "blk.0.attn_output": (WIDTH, WIDTH),
        "blk.0.ffn_norm": (WIDTH,),
        "blk.0.ffn_gate": (INNER, WIDTH),
        "blk.0.ffn_up": (INNER, WIDTH),
        "blk.0.ffn_down": (WIDTH, INNER),
    }
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def write_tiny_gguf(
    path: Path,
    change: Callable[[gguf.GGUFWriter], None] | None = None,
    *,
    architecture: str = "llama",
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.Q8_0,
) -> None:
    """A model of one block, with one quantised tensor, and a small tokenizer."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(1)
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KEY_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100_000.0)
    writer.add_license("apache-2.0")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, 3] + [1] * (len(TOKENS) - 2))
    writer.add_token_merges(["a b", "Ġ a"])
    writer.add_eos_token_id(1)
    writer.add_chat_template("{{ messages }}")
    for name, weights in tiny_weights().items():
        heads = {"blk.0.attn_q": HEADS, "blk.0.attn_k": KEY_HEADS}.get(name)
        stored = as_llama_cpp_orders_rows(weights, heads) if heads else weights
        if name == "blk.0.ffn_up":
            writer.add_tensor(f"{name}.weight", gguf.quants.quantize(stored, kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{name}.weight", stored)
    if change:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_a_gguf_becomes_the_same_model_in_another_layout(source: Path, target: Path) -> None:
    write_tiny_gguf(source / "model.gguf")
    made = convert("gguf", source, target)
    assert made == Conversion(Task.CAUSAL_LM, "LlamaForCausalLM", "bf16", "fp32", 128, "apache-2.0")
    state = load_safetensors(target / "model.safetensors")
    weights = tiny_weights()
    for theirs, ours in {
        "token_embd": "embed_tokens",
        "blk.0.attn_q": "layers.0.self_attn.q_proj",
        "blk.0.attn_k": "layers.0.self_attn.k_proj",
        "blk.0.ffn_down": "layers.0.mlp.down_proj",
        "output_norm": "norm",
    }.items():
        expected = torch.from_numpy(weights[theirs]).to(torch.bfloat16)
        assert torch.equal(state[f"model.{ours}.weight"], expected), theirs
    up = state["model.layers.0.mlp.up_proj.weight"].float().numpy()
    assert np.abs(up - weights["blk.0.ffn_up"]).max() < 0.05
    assert len(state) == len(weights)


def test_a_gguf_brings_its_configuration_and_chat_template(source: Path, target: Path) -> None:
    write_tiny_gguf(source / "model.gguf")
    convert("gguf", source, target)
    config = json.loads((target / "config.json").read_text())
    assert config["tie_word_embeddings"] is True
    assert (config["rms_norm_eps"], config["rope_theta"]) == (1e-05, 100_000.0)
    assert (config["head_dim"], config["num_key_value_heads"]) == (32, 1)
    generation = json.loads((target / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [1, 0]
    tokenizer_config = json.loads((target / "tokenizer_config.json").read_text())
    assert tokenizer_config["chat_template"] == "{{ messages }}"


def test_a_ggufs_tokenizer_splits_digits_and_knows_its_special_tokens(
    source: Path, target: Path
) -> None:
    write_tiny_gguf(source / "model.gguf")
    convert("gguf", source, target)
    tokenizer = Tokenizer.from_file(str(target / "tokenizer.json"))
    encoded = tokenizer.encode("ab a12<|end|>x")
    assert encoded.tokens == ["ab", "Ġa", "1", "2", "<|end|>", "x"]
    assert tokenizer.decode(encoded.ids) == "ab a12x"
    assert tokenizer.decode(encoded.ids, skip_special_tokens=False) == "ab a12<|end|>x"


# What splitters differ in: digits, contractions, spaces, lines, marks, and composed letters.
SPLIT_SAMPLES = (
    "It's 12345 I'LL  say\n\n  so!?\r\n",
    "a1b22 c333 4444.55",
    "caf\u00e9 cafe\u0301 \u4f60\u597d\uff0c \u0663\u0664\u0665\u0666 \t x",
    " don't  stop--now ...\n",
)


def pieces_of(tokenizer: Any, text: str) -> list[str]:
    normalizer = tokenizer.normalizer
    normal = normalizer.normalize_str(text) if normalizer is not None else text
    return [piece for piece, _ in tokenizer.pre_tokenizer.pre_tokenize_str(normal)]


def tokenizer_with(splitter: str, source: Path, target: Path, **fields: Any) -> Tokenizer:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0]["tokenizer.ggml.pre"].value = splitter
        for name, value in fields.items():
            getattr(writer, name)(value)

    write_tiny_gguf(source / "model.gguf", change)
    convert("gguf", source, target)
    return Tokenizer.from_file(str(target / "tokenizer.json"))


@pytest.mark.slow
def test_qwens_splitter_is_transformers_own(source: Path, target: Path) -> None:
    from transformers import Qwen2Tokenizer  # noqa: PLC0415

    ours = tokenizer_with("qwen2", source, target)
    theirs = Qwen2Tokenizer().backend_tokenizer
    for text in SPLIT_SAMPLES:
        assert pieces_of(ours, text) == pieces_of(theirs, text), text


@pytest.mark.slow
def test_llamas_splitter_is_transformers_own(source: Path, target: Path) -> None:
    from transformers.convert_slow_tokenizer import TikTokenConverter  # noqa: PLC0415

    ours = tokenizer_with("llama-bpe", source, target)
    theirs = Regex(TikTokenConverter().pattern)
    splitter = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(theirs, behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    for text in SPLIT_SAMPLES:
        expected = [piece for piece, _ in splitter.pre_tokenize_str(text)]
        assert pieces_of(ours, text) == expected, text


def test_a_token_in_front_of_every_text_is_added_where_special_ones_are_asked_for(
    source: Path, target: Path
) -> None:
    tokenizer = tokenizer_with("smollm", source, target, add_bos_token_id=0, add_add_bos_token=True)
    assert tokenizer.encode("ab").tokens == ["<|endoftext|>", "ab"]
    assert tokenizer.encode("ab", add_special_tokens=False).tokens == ["ab"]


def test_converting_twice_gives_the_same_bytes(source: Path, tmp_path: Path) -> None:
    write_tiny_gguf(source / "model.gguf")
    results = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        convert("gguf", source, tmp_path / name)
        results.append({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()})
    assert results[0] == results[1]
    assert len(results[0]) == 5


Q4_0, Q4_1, Q4_K = (gguf.GGMLQuantizationType[name] for name in ("Q4_0", "Q4_1", "Q4_K"))


@pytest.mark.parametrize("kind", [Q4_0, Q4_1])
def test_a_gguf_from_a_file_keeps_its_4_bit_codes(
    source: Path, target: Path, kind: gguf.GGMLQuantizationType
) -> None:
    write_tiny_gguf(source / "model.gguf", kind=kind)
    convert("gguf-codes", source, target)
    stored = gguf.quants.quantize(tiny_weights()["blk.0.ffn_up"], kind)
    expected = torch.from_numpy(gguf.quants.dequantize(stored, kind))
    plain = json.loads((target / "config.json").read_text())
    reader = MatrixReader(Weights(target), read_weight_scheme(plain), torch.float32)
    matrix = reader.take("model.layers.0.mlp.up_proj", INNER, WIDTH)
    assert isinstance(matrix, GroupedMatrix)
    torch.testing.assert_close(matrix.dense(torch.float32), expected, rtol=1e-6, atol=1e-6)


def test_query_rows_of_codes_are_put_back_in_order(source: Path, target: Path) -> None:
    weights = tiny_weights()["blk.0.attn_q"]

    def quantise(writer: gguf.GGUFWriter) -> None:
        rows = as_llama_cpp_orders_rows(weights, HEADS)
        del writer.tensors[0]["blk.0.attn_q.weight"]
        writer.add_tensor("blk.0.attn_q.weight", gguf.quants.quantize(rows, Q4_0), raw_dtype=Q4_0)

    write_tiny_gguf(source / "model.gguf", quantise)
    convert("gguf-codes", source, target)
    plain = json.loads((target / "config.json").read_text())
    reader = MatrixReader(Weights(target), read_weight_scheme(plain), torch.float32)
    matrix = reader.take("model.layers.0.self_attn.q_proj", WIDTH, WIDTH)
    assert isinstance(matrix, GroupedMatrix)
    stored = gguf.quants.quantize(weights, Q4_0)
    expected = torch.from_numpy(gguf.quants.dequantize(stored, Q4_0))
    torch.testing.assert_close(matrix.dense(torch.float32), expected, rtol=1e-6, atol=1e-6)


def write_super_blocks(path: Path, halves: tuple[float, float]) -> gguf.ReaderTensor:
    """A file with one Q4_K tensor of 3 rows and 512 columns, whose blocks have these scales."""
    blocks = np.random.default_rng(2).integers(0, 256, (3, 2, 144), np.uint8)
    blocks[:, :, :4] = np.array(halves, np.float16).view(np.uint8)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("blk.0.ffn_up.weight", blocks.reshape(3, -1), raw_dtype=Q4_K)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return gguf.GGUFReader(path).tensors[0]


def test_super_blocks_are_codes_with_scales_within_the_rounding_of_a_half(tmp_path: Path) -> None:
    tensor = write_super_blocks(tmp_path / "x.gguf", (0.013, 0.4))
    words = packed_codes(tensor).view(np.uint32)
    codes = (words[..., None] >> np.arange(0, 32, 4, dtype=np.uint32)) & 15
    scales, offsets = (
        part(tensor).astype(np.float32)[..., None] for part in (group_scales, group_offsets)
    )
    found = codes.reshape(3, 16, 32) * scales + offsets
    expected = gguf.quants.dequantize(tensor.data, Q4_K).reshape(3, 16, 32)
    assert np.abs(found - expected).max() <= 2**-11 * np.abs(offsets).max() * 2


@pytest.mark.parametrize("halves", [(float("nan"), 0.0), (1.0, float("inf")), (60_000.0, 0.0)])
def test_super_blocks_with_scales_that_are_not_finite_are_refused(
    tmp_path: Path, halves: tuple[float, float]
) -> None:
    tensor = write_super_blocks(tmp_path / "x.gguf", halves)
    with pytest.raises(ValueError, match="not finite"):
        group_scales(tensor), group_offsets(tensor)


def add_qwen2_biases(writer: gguf.GGUFWriter) -> None:
    for part, rows in (("q", WIDTH), ("k", WIDTH // HEADS), ("v", WIDTH // HEADS)):
        writer.add_tensor(f"blk.0.attn_{part}.bias", np.arange(rows, dtype=np.float32))


def add_qwen3_norms(writer: gguf.GGUFWriter) -> None:
    for part in "qk":
        writer.add_tensor(f"blk.0.attn_{part}_norm.weight", np.ones(WIDTH // HEADS, np.float32))


@pytest.mark.parametrize(
    ("architecture", "change", "made_of"),
    [
        ("qwen2", add_qwen2_biases, "Qwen2ForCausalLM"),
        ("qwen3", add_qwen3_norms, "Qwen3ForCausalLM"),
        ("smollm3", None, "SmolLM3ForCausalLM"),
    ],
)
def test_a_gguf_of_another_family_becomes_a_model_that_our_decoder_runs(
    source: Path,
    target: Path,
    architecture: str,
    change: Callable[[gguf.GGUFWriter], None] | None,
    made_of: str,
) -> None:
    write_tiny_gguf(source / "model.gguf", change, architecture=architecture)
    assert convert("gguf", source, target).architecture == made_of
    config = read_decoder_config(json.loads((target / "config.json").read_text()))
    # Whatever the family names its tensors, all that the decoder wants are there.
    DecoderModel(
        config,
        Weights(target),
        device=torch.device("cpu"),
        dtype=torch.float32,
        context_tokens=config.context_tokens,
    )
    query = load_safetensors(target / "model.safetensors")["model.layers.0.self_attn.q_proj.weight"]
    weights = torch.from_numpy(tiny_weights()["blk.0.attn_q"])
    in_order = torch.equal(query, weights.to(torch.bfloat16))
    # Only llama and what descends from it in llama.cpp has its rows in another order.
    assert in_order == (architecture == "smollm3")


def test_frequency_factors_become_settings(source: Path, target: Path) -> None:
    factors = np.linspace(1, 8, WIDTH // HEADS // 2, dtype=np.float32)
    write_tiny_gguf(
        source / "model.gguf", lambda writer: writer.add_tensor("rope_freqs.weight", factors)
    )
    convert("gguf", source, target)
    config = read_decoder_config(json.loads((target / "config.json").read_text()))
    scaling = config.ropes[0].scaling
    assert isinstance(scaling, LongScaling)
    assert scaling.attention_factor == 1.0
    assert np.allclose(scaling.long_factors, factors)


def replace_tokenizer_model(writer: gguf.GGUFWriter) -> None:
    writer.kv_data[0]["tokenizer.ggml.model"].value = "bert"


def replace_splitter(writer: gguf.GGUFWriter) -> None:
    writer.kv_data[0]["tokenizer.ggml.pre"].value = "unheard-of"


def replace_architecture(writer: gguf.GGUFWriter) -> None:
    writer.kv_data[0]["general.architecture"].value = "mamba"


def replace_field(key: str, value: Any) -> Callable[[gguf.GGUFWriter], None]:
    def change(writer: gguf.GGUFWriter) -> None:
        writer.kv_data[0][key].value = value

    return change


def repeat_a_token(writer: gguf.GGUFWriter) -> None:
    writer.kv_data[0]["tokenizer.ggml.tokens"].value = [*TOKENS[:-1], TOKENS[0]]


def add_bias(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("blk.0.attn_q.bias", np.zeros(WIDTH, np.float32))


def rotate_a_part(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_dimension_count(WIDTH // HEADS // 2)


def add_stray_tensor(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("blk.0.surprise.weight", np.zeros(4, np.float32))


def add_infinite_tensor(writer: gguf.GGUFWriter) -> None:
    writer.add_tensor("output.weight", np.full((len(TOKENS), WIDTH), np.inf, np.float32))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (replace_tokenizer_model, "tokenizer 'bert'"),
        (replace_field("tokenizer.ggml.model", "llama"), "no score for each"),
        (replace_splitter, "unheard-of"),
        (replace_architecture, "architecture 'mamba'"),
        (replace_field("llama.attention.head_count", 0), "head_count is out of range"),
        (replace_field("llama.block_count", 2**31), "block_count is out of range"),
        (replace_field("llama.rope.freq_base", float("nan")), "freq_base is out of range"),
        (replace_field("tokenizer.ggml.eos_token_id", len(TOKENS)), "eos token"),
        (repeat_a_token, "not different"),
        (add_bias, "attn_q.bias"),
        (rotate_a_part, "a part of each head"),
        (add_stray_tensor, "surprise"),
        (add_infinite_tensor, "not finite"),
    ],
)
def test_a_gguf_that_no_engine_would_run_rightly_is_refused(
    source: Path, target: Path, change: Callable[[gguf.GGUFWriter], None], reason: str
) -> None:
    write_tiny_gguf(source / "model.gguf", change)
    with pytest.raises(ConversionError, match=reason):
        convert("gguf", source, target)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GGUF",
        b"not a model at all" * 10,
        b"GGUF" + (3).to_bytes(4, "little") + b"\xff" * 64,
        b"GGUF" + (3).to_bytes(4, "little") + (2**60).to_bytes(8, "little") * 2,
    ],
)
def test_a_damaged_gguf_is_refused(source: Path, target: Path, content: bytes) -> None:
    (source / "model.gguf").write_bytes(content)
    with pytest.raises(ConversionError, match="refused"):
        convert("gguf", source, target)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_rounding_to_bfloat16_is_torchs(values: list[float]) -> None:
    floats = np.array(values, np.float32)
    expected = torch.from_numpy(floats).to(torch.bfloat16).view(torch.uint16).numpy()
    assert np.array_equal(to_bfloat16(floats), expected)


# Checkpoints


def tiny_checkpoint() -> dict[str, torch.Tensor]:
    return {
        "_conv_stem.weight": torch.arange(6.0).reshape(2, 3),
        "_blocks.0._bn0.num_batches_tracked": torch.tensor(3),
        "_fc.bias": torch.tensor([1.0, 2.0]),
    }


@pytest.mark.slow
def test_a_checkpoint_becomes_safetensors_with_labels(source: Path, target: Path) -> None:
    torch.save(tiny_checkpoint(), source / "checkpoint.pth")
    (source / "labels.json").write_text('["cat", "dog"]')
    made = convert("efficientnet", source, target)
    assert (made.task, made.dtype) == (Task.IMAGE_CLASSIFICATION, "fp32")
    state = load_safetensors(target / "model.safetensors")
    assert state.keys() == {"conv_stem.weight", "fc.bias"}
    assert torch.equal(state["conv_stem.weight"], torch.arange(6.0).reshape(2, 3))
    assert json.loads((target / "labels.json").read_text()) == ["cat", "dog"]
    assert json.loads((target / "config.json").read_text())["num_classes"] == 2


@pytest.mark.slow
def test_a_checkpoint_with_code_in_it_does_not_run(
    source: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    (source / "labels.json").write_text('["cat", "dog"]')
    for content in (hostile_pickle(tmp_path / "ran"), b"PK\x03\x04"):
        (source / "checkpoint.pth").write_bytes(content)
        with pytest.raises(ConversionError, match="refused"):
            convert("efficientnet", source, target)
    torch.save({"a": MakesFile(tmp_path / "ran")}, source / "checkpoint.pth")
    with pytest.raises(ConversionError, match=r"refused.*[Ww]eights"):
        convert("efficientnet", source, target)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["[1, 2]", '["one"]'])
def test_labels_that_do_not_fit_are_refused(source: Path, target: Path, labels: str) -> None:
    torch.save(tiny_checkpoint(), source / "checkpoint.pth")
    (source / "labels.json").write_text(labels)
    with pytest.raises(ConversionError, match="refused"):
        convert("efficientnet", source, target)


# The Hugging Face layout


def test_a_model_in_the_right_layout_is_taken_as_it_is(source: Path, target: Path) -> None:
    files = {**layout_files(), "chat_template.jinja": b"{{ 1 }}", "1_Pooling/config.json": b"{}"}
    write_files(source, {**files, "pytorch_model.bin": b"pickle", "train.py": b"import os"})
    made = convert("layout", source, target)
    assert made == Conversion(Task.CAUSAL_LM, "LlamaForCausalLM", "fp32", "fp32", 64, "unknown")
    found = {p.relative_to(target).as_posix() for p in target.rglob("*") if p.is_file()}
    assert found == set(files)


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}


def test_a_quantised_model_is_kept_as_it_is_and_says_how_many_bits_it_has(
    source: Path, target: Path
) -> None:
    files = layout_files("Qwen3ForCausalLM", quantization_config=AWQ)
    write_files(source, files)
    made = convert("layout", source, target)
    assert (made.architecture, made.dtype, made.quantization) == (
        "Qwen3ForCausalLM",
        "bf16",
        "int4",
    )
    assert (target / "model.safetensors").read_bytes() == files["model.safetensors"]


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({"num_local_experts": 8}, "num_local_experts"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "bitsandbytes"),
        ({"quantization_config": {**AWQ, "bits": 2}}, "2 bits"),
    ],
)
def test_a_layout_that_the_engine_would_not_run_is_refused_before_it_is_kept(
    source: Path, target: Path, config: dict[str, Any], reason: str
) -> None:
    write_files(source, layout_files(**config))
    with pytest.raises(ConversionError, match=reason):
        convert("layout", source, target)


def test_shards_are_found_by_their_index(source: Path, target: Path) -> None:
    files = layout_files()
    shard = files.pop("model.safetensors")
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    index = json.dumps({"weight_map": {"a": names[0], "b": names[1]}}).encode()
    write_files(source, {**files, "model.safetensors.index.json": index, names[0]: shard})
    with pytest.raises(ConversionError, match=names[1]):
        convert("layout", source, target)
    (source / names[1]).write_bytes(shard)
    convert("layout", source, target)
    assert (target / names[1]).read_bytes() == shard


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config.json": b"{"}, "config.json is not JSON"),
        ({"config.json": b"[" * 100_000}, "config.json is not JSON"),
        ({"config.json": b"[]"}, "not a JSON object"),
        ({"config.json": None}, "missing"),
        ({"tokenizer.json": None}, "no tokenizer.json"),
        ({"model.safetensors": None}, "pickled weights are not read"),
        ({"config.json": b'{"architectures": ["T5ForConditionalGeneration"]}'}, "run by no engine"),
        ({"config.json": b'{"architectures": "L", "auto_map": {}}'}, "auto_map"),
        ({"tokenizer_config.json": b'{"auto_map": {"AutoTokenizer": "x.Y"}}'}, "auto_map"),
        ({"model.safetensors.index.json": b"{}", "model.safetensors": None}, "weight_map"),
        ({"model.safetensors": b"\xff" * 8}, "header is longer"),
        (
            {
                "model.safetensors": None,
                "model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}',
            },
            "not a weight file",
        ),
    ],
)
def test_a_layout_that_is_unsafe_or_incomplete_is_refused(
    source: Path, target: Path, change: dict[str, bytes | None], reason: str
) -> None:
    changed = {**layout_files(), **change}
    write_files(source, {path: content for path, content in changed.items() if content is not None})
    with pytest.raises(ConversionError, match=reason):
        convert("layout", source, target)


def entry(start: int, end: int, shape: list[Any], dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        (2**63).to_bytes(8, "little"),
        (HEADER_BYTES_MAX + 1).to_bytes(8, "little") + b" " * 64,
        raw_safetensors(b"[]"),
        raw_safetensors(b"{"),
        raw_safetensors({"a": None}),
        raw_safetensors({"a": entry(0, 4, [1])}),
        raw_safetensors({"a": entry(0, 4, [1])}, b"12345"),
        raw_safetensors({"a": entry(0, 4, [2])}, b"1234"),
        raw_safetensors({"a": entry(0, 4, [1], "F31")}, b"1234"),
        raw_safetensors({"a": entry(0, 4, [1]), "b": entry(0, 4, [1])}, b"1234"),
        raw_safetensors({"a": entry(0, 4, [1]), "b": entry(5, 9, [1])}, b"123456789"),
        raw_safetensors({"a": entry(0, 4, [-1, -1])}, b"1234"),
        raw_safetensors({"a": entry(0, 4, [1.0])}, b"1234"),
        raw_safetensors({"a": entry(0, 4, [True])}, b"1234"),
        raw_safetensors({"a": entry(0, 4, [2**62, 2**62, 0])}, b"1234"),
        raw_safetensors({"a": {"dtype": [], "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
    ],
)
def test_a_hostile_safetensors_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="tensor"):
        read_header(tmp_path / "model.safetensors")


def test_a_sound_safetensors_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"b": np.ones((2, 3), np.float32)}))
    assert read_header(path) == [TensorInfo("b", "F32", (2, 3), 24)]


# The process


def stub(program: str) -> list[str]:
    """In place of the converter, a program of our own."""
    return [sys.executable, "-S", "-c", program]


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("", "said nothing"),
        ("raise SystemExit('out of luck')", "out of luck"),
        ("import os; os.kill(os.getpid(), 9)", "status -9"),
        ("print('what?')", "nonsense"),
        ("print('[' * 20_000)", "nonsense"),
        ("print('{\"done\": []}')", "nonsense"),
        ("print('x' * 100_000, end='')", "nonsense"),
        ("print('{\"result\": {}}')", "makes no sense"),
        ('print(\'{"result": {"task": "dance"}}\')', "makes no sense"),
    ],
)
def test_a_converter_that_fails_is_reported_in_words(
    source: Path, target: Path, program: str, reason: str
) -> None:
    with pytest.raises(ConversionError, match=reason):
        convert_model("gguf", source, target, progress=ignore_progress, program=stub(program))


def test_a_converter_that_hangs_is_stopped(source: Path, target: Path) -> None:
    program = 'import signal; print(\'{"done": 1, "total": 2}\', flush=True); signal.pause()'
    with pytest.raises(ConversionError, match="too long"):
        convert_model(
            "gguf", source, target, progress=ignore_progress, program=stub(program), timeout_s=0.5
        )


def test_a_disk_that_fills_during_conversion_is_named(source: Path, target: Path) -> None:
    program = 'print(\'{"refused": "OSError: [Errno 28] No space left on device"}\')'
    with pytest.raises(StoreFullError):
        convert_model("gguf", source, target, progress=ignore_progress, program=stub(program))


def test_a_converter_cannot_take_all_memory(source: Path, target: Path) -> None:
    program = "from capanode.models import convert; convert._limit_self(); bytearray(8 * 1024**3)"
    with pytest.raises(ConversionError, match="MemoryError"):
        convert_model("gguf", source, target, progress=ignore_progress, program=stub(program))


@pytest.mark.parametrize(
    ("attempt", "met"),
    [
        ("open('{outside}').read()", "PermissionError"),
        ("open('{outside}', 'w')", "PermissionError"),
        ("open('{outside}.new', 'w')", "PermissionError"),
        ("os.listdir('/')", "PermissionError"),
        ("socket.socket()", "PermissionError"),
        ("os.fork()", "PermissionError"),
        ("os.execv('/bin/true', ['true'])", "PermissionError"),
        ("os.kill(os.getppid(), 0)", "PermissionError"),
        ("open('{target}/model', 'w').write('x'), sys.exit('written')", "written"),
    ],
)
def test_the_converter_reaches_nothing_but_its_own_files(
    source: Path, target: Path, tmp_path: Path, attempt: str, met: str
) -> None:
    outside = tmp_path / "outside"
    outside.write_text("not the converter's business")
    program = (
        "import os, socket, sys, pathlib; from capanode.models import convert; "
        f"convert._confine_self(pathlib.Path('{source}'), pathlib.Path('{target}')); "
        + attempt.format(outside=outside, target=target)
    )
    with pytest.raises(ConversionError, match=met):
        convert_model("gguf", source, target, progress=ignore_progress, program=stub(program))
    assert outside.read_text() == "not the converter's business"


def test_the_converter_sees_no_environment_of_ours(
    source: Path, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    program = "import os; raise SystemExit(str(sorted(os.environ)))"
    with pytest.raises(ConversionError) as caught:
        convert_model("gguf", source, target, progress=ignore_progress, program=stub(program))
    assert "HF_TOKEN" not in str(caught.value)
    assert "PYTHONPATH" in str(caught.value)


def test_stopping_a_conversion_ends_its_process(source: Path, target: Path) -> None:
    program = (
        'import os, signal; print(\'{"done": %d, "total": 0}\' % os.getpid(), flush=True); '
        "signal.pause()"
    )
    process_ids: list[int] = []

    def stop(progress: Progress) -> None:
        process_ids.append(progress.done)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        convert_model("gguf", source, target, progress=stop, program=stub(program))
    with pytest.raises(ProcessLookupError):
        os.kill(process_ids[0], 0)


def test_an_unknown_format_is_refused(source: Path, target: Path) -> None:
    with pytest.raises(ConversionError, match="efficientnet"):
        convert("onnx", source, target)


def load_safetensors(path: Path) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = load_file(path)
    return state
