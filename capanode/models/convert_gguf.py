"""A llama-architecture GGUF file to the Hugging Face layout in bfloat16.

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
from capanode.models.safetensors_file import Tensor, write_safetensors

_BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_BLOCK_PATTERN = re.compile(r"blk\.(\d{1,4})\.([a-z_]+)\.weight")

# How many bits the weights really carry, in the words of the market's `quantizations` constraint.
_QUANTIZATION_OF_TYPE = {
    "F32": "fp32",
    "F16": "fp16",
    "BF16": "bf16",
    "Q8_0": "int8",
    "Q4_0": "int4",
    "Q4_1": "int4",
    "Q5_0": "int5",
    "Q5_1": "int5",
}

Metadata = dict[str, Any]


def convert_gguf(
    source: Path, target: Path, *, on_bytes: Callable[[int, int], None]
) -> dict[str, Any]:
    """Convert the one `.gguf` in `source`; returns what the manifest says.

    Raises ValueError (with a sentence for the user) if the file is damaged or not supported.
    """
    path = next(iter(sorted(source.glob("*.gguf"))), None)
    if path is None:
        raise ValueError("the folder holds no .gguf file")
    try:
        reader = gguf.GGUFReader(path)
        metadata = {name: field.contents() for name, field in reader.fields.items()}
    except (IndexError, KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"the GGUF file is damaged: {error!r}") from error
    config = _config(metadata, tied="output.weight" not in {t.name for t in reader.tensors})
    write_safetensors(target / "model.safetensors", _tensors(reader, config), on_bytes=on_bytes)
    generation = {
        key: config[key] for key in ("bos_token_id", "pad_token_id") if config[key] is not None
    }
    files = {
        "config.json": config,
        "generation_config.json": {**generation, "eos_token_id": _end_tokens(metadata)},
        **tokenizer_files(metadata),
    }
    for name, content in files.items():
        text = json.dumps(content, ensure_ascii=False, indent=2, sort_keys=True)
        (target / name).write_text(text + "\n", encoding="utf-8")
    return {
        "task": "causal_lm",
        "architecture": "LlamaForCausalLM",
        "dtype": "bf16",
        "quantization": _quantization(reader),
        "context_tokens": config["max_position_embeddings"],
        "licence": str(metadata.get("general.license", "unknown")),
    }


def _config(metadata: Metadata, *, tied: bool) -> dict[str, Any]:
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise ValueError(f"GGUF architecture {architecture!r} is not supported, only 'llama'")

    def value(key: str) -> Any:
        try:
            return metadata[f"llama.{key}"]
        except KeyError:
            raise ValueError(f"the GGUF file has no llama.{key}") from None

    if "llama.rope.scaling.type" in metadata:
        raise ValueError("GGUF files with scaled rotary embeddings are not supported")
    heads = value("attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "head_dim": value("embedding_length") // heads,
        "hidden_act": "silu",
        "hidden_size": value("embedding_length"),
        "intermediate_size": value("feed_forward_length"),
        "max_position_embeddings": value("context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": value("block_count"),
        "num_key_value_heads": metadata.get("llama.attention.head_count_kv", heads),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id"),
        "rms_norm_eps": _shortest(value("attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(metadata.get("llama.rope.freq_base", 10_000.0)),
        "tie_word_embeddings": tied,
        "torch_dtype": "bfloat16",
        "vocab_size": len(metadata.get("tokenizer.ggml.tokens", ())),
    }


def _shortest(value: float) -> float:
    """A float32 in its shortest decimal form: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value)))


def _end_tokens(metadata: Metadata) -> list[int]:
    """The tokens that end an answer: the model's own, and the end of a training document, which a
    model emits when it was prompted without a chat template (llama.cpp stops at both)."""
    tokens = metadata["tokenizer.ggml.tokens"]
    ends = [metadata["tokenizer.ggml.eos_token_id"]]
    if "<|endoftext|>" in tokens and tokens.index("<|endoftext|>") not in ends:
        ends.append(tokens.index("<|endoftext|>"))
    return ends


def _quantization(reader: gguf.GGUFReader) -> str:
    """The type of most weights by size, since norms and embeddings often keep more bits."""
    sizes: dict[str, int] = {}
    for tensor in reader.tensors:
        sizes[tensor.tensor_type.name] = sizes.get(tensor.tensor_type.name, 0) + tensor.n_elements
    return _QUANTIZATION_OF_TYPE.get(max(sizes, key=lambda name: sizes[name]), "unknown")


def _tensors(reader: gguf.GGUFReader, config: dict[str, Any]) -> list[Tensor]:
    tensors = []
    for tensor in reader.tensors:
        name, heads = _hugging_face_name(tensor.name), 0
        if name.endswith("q_proj.weight"):
            heads = config["num_attention_heads"]
        elif name.endswith("k_proj.weight"):
            heads = config["num_key_value_heads"]
        # GGUF lists the fastest dimension first, safetensors last.
        shape = tuple(int(size) for size in reversed(tensor.shape))
        tensors.append(Tensor(name, "BF16", shape, partial(_load, tensor, shape, heads)))
    return tensors


def _hugging_face_name(name: str) -> str:
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    match = _BLOCK_PATTERN.fullmatch(name)
    if match is None or match[2] not in _BLOCK_NAMES:
        raise ValueError(f"tensor {name[:64]!r} is not one of a llama model")
    return f"model.layers.{match[1]}.{_BLOCK_NAMES[match[2]]}.weight"


def _load(tensor: gguf.ReaderTensor, shape: tuple[int, ...], heads: int) -> npt.NDArray[np.uint16]:
    try:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError:
        kind = tensor.tensor_type.name
        raise ValueError(f"tensor type {kind} cannot be dequantised here") from None
    values = np.ascontiguousarray(values, np.float32).reshape(shape)
    if heads:
        values = _unpermute(values, heads)
    if not np.isfinite(values).all():
        raise ValueError(f"tensor {tensor.name[:64]!r} holds values that are not finite")
    return to_bfloat16(values)


def _unpermute(values: npt.NDArray[np.float32], heads: int) -> npt.NDArray[np.float32]:
    """Undo llama.cpp's order of query and key rows: it interleaves the two halves of each head for
    its rotary embedding, where Hugging Face keeps them one after the other."""
    rows, columns = values.shape
    halves = values.reshape(heads, rows // heads // 2, 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


def to_bfloat16(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """The bits of finite float32 rounded to the nearest bfloat16, ties to even, as torch does."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")
