"""Reading a model directory: JSON files and safetensors, each checked before anything is allocated.

Only safetensors and our own architectures are loaded: no pickle, no code from the model.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from capanode.engines.base import ModelLoadError
from capanode.models.safetensors_file import read_header

# The largest tokenizer.json in the field is about 35 MB; longer is an attack on the parser.
JSON_BYTES_MAX = 64 * 1024 * 1024

# By their names in config.json.
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}

# By their names in a safetensors header.
_STORED = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "U16": torch.uint16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "U32": torch.uint32,
    "F32": torch.float32,
    "I64": torch.int64,
    "U64": torch.uint64,
    "F64": torch.float64,
}


def dtype_here(name: str, device: torch.device) -> torch.dtype:
    """A type by its name in config.json; on a CPU, whose half floats are slow, bfloat16 in their
    place."""
    is_half_on_cpu = name == "float16" and device.type == "cpu"
    return torch.bfloat16 if is_half_on_cpu else DTYPES[name]


def read_json(path: Path) -> Mapping[str, Any]:
    """A JSON object. Raises ModelLoadError if the file is missing, too long or something else."""
    content = _parse_json(path)
    if not isinstance(content, dict):
        raise ModelLoadError(f"{path.name} is not a JSON object")
    return content


def read_optional_json(path: Path) -> Mapping[str, Any]:
    """As `read_json`; empty if there is no such file."""
    return read_json(path) if path.exists() else MappingProxyType({})


def read_optional_objects(path: Path) -> list[Mapping[str, Any]]:
    """A JSON list of objects; empty if there is no such file. Raises ModelLoadError."""
    content = _parse_json(path) if path.exists() else []
    if not isinstance(content, list) or not all(isinstance(item, dict) for item in content):
        raise ModelLoadError(f"{path.name} is not a JSON list of objects")
    return content


def read_names(path: Path) -> list[str]:
    """A JSON list of names. Raises ModelLoadError."""
    content = _parse_json(path)
    if not isinstance(content, list) or not all(isinstance(item, str) for item in content):
        raise ModelLoadError(f"{path.name} is not a JSON list of names")
    return content


def _parse_json(path: Path) -> object:
    try:
        if path.stat().st_size > JSON_BYTES_MAX:
            raise ModelLoadError(f"{path.name} is longer than {JSON_BYTES_MAX} bytes")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ModelLoadError(f"{path.name} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ModelLoadError(f"{path.name} is not JSON: {error}") from error


class Weights:
    """The tensors of a model directory by name, memory-mapped: what is read once and repacked costs
    no second copy. Drop the object when the model is built, so that the mapping goes away."""

    def __init__(self, model_dir: Path, *, device: torch.device | None = None) -> None:
        """Tensors are taken to the device, the processor's memory if there is none."""
        self._device = device or torch.device("cpu")
        self._readers: dict[str, Any] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._dtypes: dict[str, str] = {}
        for path in _weight_files(model_dir):
            try:
                infos = read_header(path)
                reader = safe_open(path, framework="pt", device="cpu")
            except (OSError, ValueError, SafetensorError) as error:
                raise ModelLoadError(f"{path.name}: {error}") from error
            for info in infos:
                self._readers[info.name] = reader
                self._shapes[info.name] = info.shape
                self._dtypes[info.name] = info.dtype

    def __contains__(self, name: str) -> bool:
        return name in self._readers

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def take(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """The tensor, converted if need be. Raises ModelLoadError unless it has this shape."""
        if self._shapes[self._known(name)] != tuple(shape):
            raise ModelLoadError(f"{name} has shape {self._shapes[name]}, not {tuple(shape)}")
        tensor: torch.Tensor = self._readers[name].get_tensor(name)
        is_float8 = tensor.is_floating_point() and tensor.itemsize == 1
        if (
            tensor.is_floating_point() != dtype.is_floating_point
            # Without its scales a tensor in float8 means nothing.
            or ((is_float8 or dtype.itemsize == 1) and tensor.dtype != dtype)
        ):
            raise ModelLoadError(f"{name} holds {tensor.dtype}, which this engine does not run")
        return tensor.to(self._device, dtype)

    def dtype(self, name: str) -> torch.dtype:
        """What the files hold. Raises ModelLoadError if there is no such tensor."""
        return _STORED[self._dtypes[self._known(name)]]

    def zeros(self, size: int) -> torch.Tensor:
        """In float32, where the weights are."""
        return torch.zeros(size, device=self._device)

    def shape(self, name: str) -> tuple[int, ...]:
        """Raises ModelLoadError if there is no such tensor."""
        return self._shapes[self._known(name)]

    def _known(self, name: str) -> str:
        if name not in self._shapes:
            raise ModelLoadError(f"the weights lack {name}")
        return name


def _weight_files(model_dir: Path) -> list[Path]:
    """The one weight file, or the shards that the index names (all of them in this directory)."""
    index = model_dir / "model.safetensors.index.json"
    if not index.exists():
        return [model_dir / "model.safetensors"]
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict):
        raise ModelLoadError(f"{index.name} has no weight_map")
    shards = [model_dir / str(name) for name in sorted(set(weight_map.values()))]
    for shard in shards:
        if shard.parent != model_dir or shard.suffix != ".safetensors":
            raise ModelLoadError(f"{index.name} names a file outside the model's directory")
    return shards
