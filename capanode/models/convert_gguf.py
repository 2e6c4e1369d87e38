"""A GGUF file to the Hugging Face layout: in bfloat16, or with the codes of its 4-bit matrices.

Runs only in the converter process: GGUF is an untrusted format read by a parser that trusts it. The
result is the same byte for byte wherever it runs, so that the catalog can pin it: dequantising is
one multiplication and one addition in float32, rounding is integer arithmetic, the JSON is ours.
"""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

from capanode.models.convert_tokenizer import tokenizer_files
from capanode.models.gguf_codes import (
    CODE_BITS,
    GROUP_SIZE,
    KEPT_TYPES,
    group_offsets,
    group_scales,
    packed_codes,
)
from capanode.models.gguf_families import GGUF_FAMILIES, GgufFamily
from capanode.models.gguf_fields import GgufFields
from capanode.models.safetensors_file import Tensor, write_safetensors

_OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_PATTERN = re.compile(r"blk\.(\d{1,4})\.([a-z_]+)\.(weight|bias)")

# Divisors of the rotation's frequencies: they become settings. One list (Llama 3.1), or two, for
# long contexts and for others (LongRoPE).
_FREQUENCY_FACTORS = "rope_freqs.weight"
_LONG_FACTORS, _SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
_SETTINGS = frozenset({_FREQUENCY_FACTORS, _LONG_FACTORS, _SHORT_FACTORS})

# Tokens that end an answer beside the model's own: the end of a training document, which a model
# emits when it was prompted without a chat template, and those of turns (llama.cpp stops at them).
_END_TOKENS = ("<|endoftext|>", "<end_of_turn>", "<|end|>", "<|eot_id|>")

# How many bits the weights really carry, in the words of the market's `quantizations` constraint.
_QUANTIZATION_OF_TYPE = {
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "Q8_0": "int8",
    "Q4_0": "int4",
    "Q4_1": "int4",
    "Q4_K": "int4",
    "Q5_0": "int5",
    "Q5_1": "int5",
    "Q5_K": "int5",
    "Q6_K": "int6",
}


def convert_gguf(
    source: Path, target: Path, *, on_bytes: Callable[[int, int], None]
) -> dict[str, Any]:
    """Convert the one `.gguf` in `source` to bfloat16; returns what the manifest says.

    Raises ValueError (with a sentence for the user) if the file is damaged or not supported.
    """
    return _convert(source, target, on_bytes, keeps_codes=False)


def convert_gguf_codes(
    source: Path, target: Path, *, on_bytes: Callable[[int, int], None]
) -> dict[str, Any]:
    """The same, but matrices of 4 bits keep their codes."""
    return _convert(source, target, on_bytes, keeps_codes=True)


def _convert(
    source: Path, target: Path, on_bytes: Callable[[int, int], None], *, keeps_codes: bool
) -> dict[str, Any]:
    path = next(iter(sorted(source.glob("*.gguf"))), None)
    if path is None:
        raise ValueError("the folder holds no .gguf file")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: item.contents() for name, item in reader.fields.items()}
    except (IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"the GGUF file is damaged: {error!r}") from error
    fields = GgufFields(metadata)
    family = GGUF_FAMILIES.get(fields.architecture)
    if family is None:
        raise ValueError(
            f"GGUF architecture {fields.architecture[:64]!r} is not supported, only "
            f"{', '.join(sorted(GGUF_FAMILIES))}"
        )
    config = _config(fields, family, reader)
    tensors = _tensors(reader, config, family, keeps_codes=keeps_codes)
    if any(tensor.dtype == "I32" for tensor in tensors):
        config["quantization_config"] = {
            "quant_method": "capacloud-groups",
            "bits": CODE_BITS,
            "group_size": GROUP_SIZE,
        }
    write_safetensors(target / "model.safetensors", tensors, on_bytes=on_bytes)
    _write_settings(target, fields, config)
    return {
        "task": "causal_lm",
        "architecture": family.architecture,
        "dtype": "bf16",
        "quantization": _quantization(reader),
        "context_tokens": config["max_position_embeddings"],
        "licence": str(metadata.get("general.license", "unknown")),
    }


def _write_settings(target: Path, fields: GgufFields, config: dict[str, Any]) -> None:
    generation = {
        key: config[key] for key in ("bos_token_id", "pad_token_id") if config[key] is not None
    }
    files = {
        "config.json": config,
        "generation_config.json": {**generation, "eos_token_id": _end_tokens(fields)},
        **tokenizer_files(fields),
    }
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True)
        (target / name).write_text(text + "\n", encoding="utf-8")


def _config(fields: GgufFields, family: GgufFamily, reader: gguf.GGUFReader) -> dict[str, Any]:
    names = {tensor.name for tensor in reader.tensors}
    heads = fields.natural("attention.head_count")
    width = fields.natural("embedding_length")
    config = {
        "architectures": [family.architecture],
        "bos_token_id": fields.token("bos"),
        "eos_token_id": fields.token("eos"),
        "head_dim": fields.natural("attention.key_length", width // heads),
        "hidden_act": "silu",
        "hidden_size": width,
        "intermediate_size": fields.natural("feed_forward_length"),
        "max_position_embeddings": fields.natural("context_length"),
        "model_type": family.model_type,
        "num_attention_heads": heads,
        "num_hidden_layers": fields.natural("block_count"),
        "num_key_value_heads": fields.natural("attention.head_count_kv", heads),
        "pad_token_id": fields.token("padding"),
        "rms_norm_eps": fields.number("attention.layer_norm_rms_epsilon"),
        "rope_theta": fields.number("rope.freq_base", 10_000.0),
        "tie_word_embeddings": "output.weight" not in names,
        "torch_dtype": "bfloat16",
        "vocab_size": len(fields.tokens),
        **family.settings(fields),
    }
    rotated = fields.natural("rope.dimension_count", config["head_dim"])
    if rotated != config["head_dim"] and not family.may_rotate_a_part:
        raise ValueError("GGUF files that rotate a part of each head are not supported")
    if fields.get("rope.scaling.type") not in {None, "none", *family.scalings}:
        raise ValueError("GGUF files with scaled rotary embeddings are not supported")
    if _FREQUENCY_FACTORS in names:
        config["rope_scaling"] = _long_rope(reader, (_FREQUENCY_FACTORS,) * 2, config)
        config["rope_scaling"]["attention_factor"] = 1.0
    elif _LONG_FACTORS in names:
        config["rope_scaling"] = _long_rope(reader, (_LONG_FACTORS, _SHORT_FACTORS), config)
        if fields.get("rope.scaling.attn_factor") is not None:
            factor = fields.number("rope.scaling.attn_factor")
            config["rope_scaling"]["attention_factor"] = factor
    return config


def _long_rope(
    reader: gguf.GGUFReader, names: tuple[str, str], config: dict[str, Any]
) -> dict[str, Any]:
    """Llama's one list is LongRoPE with two that are the same. The engine checks their number."""
    context = config["max_position_embeddings"]
    long, short = (_factors(reader, name) for name in names)
    return {
        "long_factor": long,
        "original_max_position_embeddings": config.get("original_max_position_embeddings", context),
        "rope_type": "longrope",
        "short_factor": short,
    }


def _factors(reader: gguf.GGUFReader, name: str) -> list[float]:
    tensor = next((item for item in reader.tensors if item.name == name), None)
    if tensor is None:
        raise ValueError(f"the GGUF file has no tensor {name}")
    return [float(str(value)) for value in np.asarray(tensor.data, np.float32).ravel()]


def _end_tokens(fields: GgufFields) -> list[int]:
    own, tokens = fields.token("eos"), fields.tokens
    if own is None:
        raise ValueError("the GGUF file names no token that ends an answer")
    others = [tokens.index(token) for token in _END_TOKENS if token in tokens]
    return [own, *(token for token in others if token != own)]


def _quantization(reader: gguf.GGUFReader) -> str:
    """The type of most weights by size, since norms and embeddings often keep more bits."""
    sizes: dict[str, int] = {}
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + tensor.n_elements
    return _QUANTIZATION_OF_TYPE.get(max(sizes, key=lambda name: sizes[name]), "unknown")


def _tensors(
    reader: gguf.GGUFReader, config: dict[str, Any], family: GgufFamily, *, keeps_codes: bool
) -> list[Tensor]:
    tensors: list[Tensor] = []
    for tensor in reader.tensors:
        if tensor.name in _SETTINGS:
            continue
        name, heads = _hugging_face_name(tensor.name, family), 0
        if family.is_interleaved and name.endswith("q_proj.weight"):
            heads = config["num_attention_heads"]
        elif family.is_interleaved and name.endswith("k_proj.weight"):
            heads = config["num_key_value_heads"]
        # GGUF lists the fastest dimension first, safetensors last.
        shape = tuple(int(size) for size in reversed(tensor.shape))
        is_matrix = len(shape) == 2 and name not in _OUTER_NAMES.values()
        if keeps_codes and is_matrix and tensor.tensor_type.name in KEPT_TYPES:
            tensors += _kept(tensor, name, shape, heads)
        else:
            is_offset = family.has_offset_norms and name.endswith("norm.weight")
            load = partial(_load, tensor, shape, heads, offset=-1 if is_offset else 0)
            tensors.append(Tensor(name, "BF16", shape, load))
    return tensors


def _kept(tensor: gguf.ReaderTensor, name: str, shape: tuple[int, ...], heads: int) -> list[Tensor]:
    """The matrix as `capanode.engines.quantized_weights` reads it."""
    rows, columns = shape
    groups = (rows, columns // GROUP_SIZE)
    parts = (
        ("packed", "I32", (rows, columns * CODE_BITS // 32), packed_codes),
        ("scale", "F16", groups, group_scales),
        ("offset", "F16", groups, group_offsets),
    )
    return [
        Tensor(f"{name}_{part}", dtype, size, partial(_load_rows, load, tensor, heads))
        for part, dtype, size, load in parts
    ]


def _load_rows(
    load: Callable[[gguf.ReaderTensor], npt.NDArray[Any]], tensor: gguf.ReaderTensor, heads: int
) -> npt.NDArray[Any]:
    values = load(tensor)
    return _unpermute(values, heads) if heads else values


def _hugging_face_name(name: str, family: GgufFamily) -> str:
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    match = _BLOCK_PATTERN.fullmatch(name)
    is_known = match is not None and match[2] in family.block_names
    if match is None or not is_known or (match[3] == "bias" and not family.has_biases):
        raise ValueError(f"tensor {name[:64]!r} is not one of a {family.model_type} model")
    return f"model.layers.{match[1]}.{family.block_names[match[2]]}.{match[3]}"


def _load(
    tensor: gguf.ReaderTensor, shape: tuple[int, ...], heads: int, *, offset: int
) -> npt.NDArray[np.uint16]:
    try:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise ValueError(f"tensor type {kind} cannot be dequantised here") from None
    values = np.ascontiguousarray(values, np.float32).reshape(shape)
    if heads:
        values = _unpermute(values, heads)
    if offset:
        values = values + np.float32(offset)
    if not np.isfinite(values).all():
        raise ValueError(f"tensor {tensor.name[:64]!r} holds values that are not finite")
    return to_bfloat16(values)


def _unpermute(values: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Undo llama.cpp's order of query and key rows: it interleaves the two halves of each head for
    its rotary embedding, where Hugging Face keeps them one after the other."""
    rows, columns = values.shape
    halves = values.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of finite float32 rounded to the nearest bfloat16, ties to even, as torch does."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
