"""GGUF files of Gemma 2 and 3 and of Phi 3: each becomes the very model that transformers wrote.

That our decoder runs that model as transformers does is tested in `engines/test_families.py`.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from capanode.engines.decoder_config import DecoderConfig, LongScaling
from capanode.engines.families import read_decoder_config
from capanode.models.conversion import convert_model
from capanode.models.progress import ignore_progress
from tests.capanode.engines.test_families import SIZES, write_family

GEMMA_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
PHI_NAMES = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTER_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}

# A SentencePiece vocabulary as llama.cpp stores one: marks, bytes, then pieces with their scores.
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
PIECES = [*"▁heloвмир,", "he", "ll", "hell", "▁h", "▁hell", "lo", "▁▁", "ми", "▁м"]
TOKENS = ["<unk>", "<s>", "</s>", *BYTES, *PIECES, "<|end|>", "  "]
TYPES = [2, 3, 3, *[6] * 256, *[1] * len(PIECES), 3, 4]
FIRST_PIECE = 3 + len(BYTES)


def gguf_names(name: str, block_names: dict[str, str]) -> str:
    stem, _, kind = name.rpartition(".")
    if stem in OUTER_NAMES:
        return f"{OUTER_NAMES[stem]}.{kind}"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{block_names[part]}.{kind}"


def write_gguf(path: Path, architecture: str, config: dict[str, Any]) -> gguf.GGUFWriter:
    """With what every file says; the caller adds the rest and finishes it."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list((TOKENS * 2)[: config["vocab_size"]])
    writer.add_token_types((TYPES * 2)[: config["vocab_size"]])
    writer.add_token_scores([-float(at) for at in range(config["vocab_size"])])
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    return writer


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_gemma2(writer: gguf.GGUFWriter) -> None:
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_attn_logit_softcapping(2.0)
    writer.add_final_logit_softcapping(3.0)
    writer.add_sliding_window(8)


def add_gemma3(writer: gguf.GGUFWriter) -> None:
    writer.add_key_length(32)
    writer.add_value_length(32)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_freq_base_swa(100.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(8.0)
    writer.add_sliding_window(8)


def add_phi3(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(16)
    writer.add_rope_scaling_orig_ctx_len(128)
    writer.add_sliding_window(8)


def add_phi4_mini(writer: gguf.GGUFWriter) -> None:
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(12)
    writer.add_rope_scaling_orig_ctx_len(64)
    writer.add_rope_scaling_attn_factors(float(np.sqrt(1 + np.log(2) / np.log(64))))
    writer.add_sliding_window(0)
    for kind, factors in (
        ("short", [1.0, 1.5, 2.0, 2.5, 3.0, 3.5]),
        ("long", [1.0, 2.0, 4.0, 6.0, 8.0, 9.0]),
    ):
        writer.add_tensor(f"rope_factors_{kind}.weight", np.array(factors, np.float32))


def as_a_file_says_it(config: DecoderConfig) -> DecoderConfig:
    """Numbers of GGUF have 32 bits."""
    (rope, *others) = config.ropes
    if not isinstance(rope.scaling, LongScaling):
        return config
    factor = float(str(np.float32(rope.scaling.attention_factor)))
    scaling = replace(rope.scaling, attention_factor=factor)
    return replace(config, ropes=(replace(rope, scaling=scaling), *others))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "architecture", "add", "changes"),
    [
        ("gemma2", "gemma2", add_gemma2, {"query_pre_attn_scalar": 32}),
        (
            "gemma3",
            "gemma3",
            add_gemma3,
            {"num_hidden_layers": 6, "sliding_window_pattern": 6},
        ),
        ("phi3-window", "phi3", add_phi3, {}),
        ("phi4-mini", "phi3", add_phi4_mini, {}),
    ],
)
def test_a_gguf_is_the_model_that_transformers_wrote(
    tmp_path: Path,
    name: str,
    architecture: str,
    add: Callable[[gguf.GGUFWriter], None],
    changes: dict[str, Any],
) -> None:
    theirs, source, target = (tmp_path / part for part in ("theirs", "source", "target"))
    for folder in (theirs, source, target):
        folder.mkdir()
    write_family(theirs, name, **changes)
    state = load_file(theirs / "model.safetensors")
    is_gemma = architecture.startswith("gemma")
    writer = write_gguf(source / "model.gguf", architecture, {**SIZES, **changes})
    add(writer)
    for called, tensor in state.items():
        # As llama.cpp's converter: Gemma's norms with the 1 that the model adds to them.
        stored = tensor + 1 if is_gemma and called.endswith("norm.weight") else tensor
        block_names = GEMMA_NAMES if is_gemma else PHI_NAMES
        writer.add_tensor(gguf_names(called, block_names), stored.numpy())
    finish(writer)
    convert_model("gguf", source, target, progress=ignore_progress, timeout_s=60.0)

    made, expected = (
        read_decoder_config(json.loads((folder / "config.json").read_text()))
        for folder in (target, theirs)
    )
    assert replace(made, dtype_name="float32") == as_a_file_says_it(expected)
    converted = load_file(target / "model.safetensors")
    assert converted.keys() == state.keys()
    for called, tensor in state.items():
        torch.testing.assert_close(converted[called].float(), tensor, rtol=2**-7, atol=1e-6)


# SentencePiece


def tokenizer_of(tmp_path: Path, architecture: str, **fields: bool) -> Tokenizer:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    target.mkdir()
    config = {**SIZES, "vocab_size": len(TOKENS), "num_hidden_layers": 1}
    writer = write_gguf(source / "model.gguf", architecture, config)
    writer.add_sliding_window(8)
    writer.add_bos_token_id(1)
    for name, value in fields.items():
        getattr(writer, name)(value)
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    finish(writer)
    convert_model("gguf", source, target, progress=ignore_progress, timeout_s=60.0)
    generation = json.loads((target / "generation_config.json").read_text())
    assert generation["eos_token_id"] == [2, TOKENS.index("<|end|>")]
    return Tokenizer.from_file(str(target / "tokenizer.json"))


def joined_by_score(text: str) -> list[str]:
    """As SentencePiece does it: the neighbours whose piece has the highest score, the first of
    equals; what is no piece becomes its bytes."""
    parts = list(text)
    while True:
        pairs = [
            (TOKENS.index(left + right), at)
            for at, (left, right) in enumerate(pairwise(parts))
            if left + right in PIECES
        ]
        if not pairs:
            break
        _, at = min(pairs)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return [
        one
        for part in parts
        for one in ([part] if part in PIECES else [f"<0x{b:02X}>" for b in part.encode()])
    ]


@pytest.mark.parametrize(
    "text", ["hello hell", "ll hello, мир", "hé 你 lo", "мимир hellohello", ""]
)
def test_a_text_becomes_the_pieces_that_sentencepiece_makes(tmp_path: Path, text: str) -> None:
    tokenizer = tokenizer_of(tmp_path, "phi3")
    expected = joined_by_score("▁" + text.replace(" ", "▁")) if text else []
    assert tokenizer.encode(text, add_special_tokens=False).tokens == expected
    encoded = tokenizer.encode(text)
    assert encoded.tokens == ["<s>", *expected]
    assert tokenizer.decode(encoded.ids) == text


def test_gemma_sets_no_space_in_front_and_keeps_runs_of_spaces(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, "gemma2", add_add_space_prefix=False)
    encoded = tokenizer.encode("hello  мир hell")
    assert encoded.tokens == ["<s>", "hell", "o", "  ", "ми", "р", "▁hell"]
    assert tokenizer.decode(encoded.ids) == "hello  мир hell"


def test_phi_takes_the_space_behind_a_mark_for_a_part_of_it(tmp_path: Path) -> None:
    tokenizer = tokenizer_of(tmp_path, "phi3")
    encoded = tokenizer.encode("hell<|end|>\n<s>\n", add_special_tokens=False)
    found = [TOKENS[token_id] for token_id in encoded.ids]
    assert found == ["▁hell", "<|end|>", "<s>", "▁", "<0x0A>"]
