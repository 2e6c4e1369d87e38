"""A folder that already has the Hugging Face layout: check it, and take over what engines read.

Runs only in the converter process. Nothing is rewritten, so the files keep the digests that the
publisher gave them.
"""

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from capanode.engines.families import read_decoder_config
from capanode.engines.weight_scheme import read_weight_scheme
from capanode.models.layout_texts import check_texts
from capanode.models.safetensors_file import read_header
from capanode.models.sources import CODE_FILE
from capanode.tasks import (
    CODE_ARCHITECTURES,
    NODE_TASKS,
    OTHER_DECODERS,
    VLLM_DECODERS,
    task_of_architecture,
)
from capanode.vllm_package import installed_vllm
from protocol.messages import Task

_DTYPE_NAMES = {"F32": "fp32", "F16": "fp16", "BF16": "bf16", "F64": "fp64"}
# The largest tokenizer.json in the field is about 35 MB.
_TEXT_BYTES_MAX = 64 * 1024 * 1024
_CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "labels.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "model.safetensors.index.json",
)


def convert_layout(
    source: Path, target: Path, *, on_bytes: Callable[[int, int], None]
) -> dict[str, Any]:
    """Check the model in `source` and link its files into `target` (same file system).

    Raises ValueError (with a sentence for the user) if a file is damaged, unsafe or missing.
    """
    config = _read_json(source / "config.json")
    for name in ("config.json", "tokenizer_config.json"):
        if (source / name).exists() and "auto_map" in _read_json(source / name):
            raise ValueError(f"{name} wants to run code from the repository (auto_map)")
    architecture = next(iter(config.get("architectures") or ["none"]))
    is_encoder = (source / "1_Pooling" / "config.json").exists()
    task = task_of_architecture(architecture, is_sentence_encoder=is_encoder)
    if task is None:
        raise ValueError(f"architecture {str(architecture)[:64]!r} is run by no engine here")
    missing = [name for name in NODE_TASKS[task].model_files if not (source / name).exists()]
    if missing:
        raise ValueError(f"the model has no {missing[0]}")
    is_code = architecture in CODE_ARCHITECTURES
    weights = [_program_file(source)] if is_code else _weight_files(source)
    if task is Task.CAUSAL_LM:
        dtype, quantization = _decoder_types(architecture, weights, config)
    else:
        dtype = quantization = _dtype([] if is_code else weights, NODE_TASKS[task].dtype)
    files = [*weights, *(source / name for name in _CONFIG_FILES if (source / name).exists())]
    check_texts(files)
    total = sum(file.stat().st_size for file in files)
    done = 0
    for file in files:
        placed = target / file.relative_to(source)
        placed.parent.mkdir(exist_ok=True)
        os.link(file, placed)
        done += file.stat().st_size
        on_bytes(done, total)
    return {
        "task": task,
        "architecture": architecture,
        "dtype": dtype,
        "quantization": quantization,
        "context_tokens": _context_tokens(source, config),
        "licence": "unknown",
    }


def _program_file(source: Path) -> Path:
    """It is not looked into: that would run it."""
    program = source / CODE_FILE
    if not program.is_file():
        raise ValueError(f"the model has no {CODE_FILE}")
    return program


def _weight_files(source: Path) -> list[Path]:
    """model.safetensors, or the shards that its index names."""
    single, index = source / "model.safetensors", source / "model.safetensors.index.json"
    if single.exists():
        return [single]
    if not index.exists():
        raise ValueError("the model has no model.safetensors (pickled weights are not read)")
    weight_map = _read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ValueError("model.safetensors.index.json has no weight_map")
    shards = [source / str(name) for name in sorted(set(weight_map.values()))]
    for shard in shards:
        if shard.parent != source or shard.suffix != ".safetensors" or not shard.is_file():
            raise ValueError(
                f"the index names {shard.name[:64]!r}, which is not a weight file here"
            )
    return shards


def _dtype(weights: list[Path], computed: str | None) -> str:
    """What the engine computes in, or else the type of most of the weights by size. Every header is
    checked on the way."""
    sizes: dict[str, int] = {}
    for path in weights:
        for tensor in read_header(path):
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.nbytes
    if computed is not None:
        return computed
    largest = max(sizes, key=lambda name: sizes[name], default="none")
    if largest not in _DTYPE_NAMES:
        raise ValueError(f"weights of type {largest} are read by no engine here")
    return _DTYPE_NAMES[largest]


def _decoder_types(
    architecture: str, weights: list[Path], config: dict[str, Any]
) -> tuple[str, str]:
    """What is computed in, and how many bits weights have. Raises ModelLoadError if the engine
    would not run the model."""
    if architecture in OTHER_DECODERS:
        has_library = importlib.util.find_spec("transformers") is not None
        if not has_library and installed_vllm() is None:
            raise ValueError(
                f"{architecture} is run by transformers: pip install 'capacloud[transformers]'"
            )
        if config.get("quantization_config") is not None:
            raise ValueError(f"quantised weights of {architecture} are run by no engine here")
    elif architecture in VLLM_DECODERS:
        if installed_vllm() is None:
            raise ValueError(f"{architecture} is run by vLLM: pip install 'capacloud[vllm]'")
    else:
        read_decoder_config(config)
    scheme = read_weight_scheme(config)
    if scheme is None:
        dtype = _dtype(weights, None)
        return dtype, dtype
    # Every header is checked on the way; what type most weights have says nothing.
    return _dtype(weights, "bf16"), scheme.name


def _context_tokens(source: Path, config: dict[str, Any]) -> int:
    """How much text the model takes; sentence encoders are trained on less than they could."""
    sentence = source / "sentence_bert_config.json"
    limit = _read_json(sentence).get("max_seq_length") if sentence.exists() else None
    # GPT-2 and its kin say `n_positions`.
    of_text = config.get("max_position_embeddings", config.get("n_positions", 0))
    value = limit if limit is not None else of_text
    if type(value) is not int or value < 0:
        raise ValueError("the model's context length is not a natural number")
    return value


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file() or path.stat().st_size > _TEXT_BYTES_MAX:
        raise ValueError(f"{path.name} is missing or too large")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is not JSON: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return content
