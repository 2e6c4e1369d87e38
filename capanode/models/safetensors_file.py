"""Reading and writing the head of safetensors files by hand, so that the same weights always give
the same bytes, bfloat16 needs no torch, and a hostile header meets our own bounds first.

Format: u64 little-endian header length, JSON header, raw tensors (huggingface/safetensors).
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

# A header of 16 MiB names about 100,000 tensors; a longer one is an attack on the parser.
HEADER_BYTES_MAX = 16 * 1024 * 1024
_LENGTH_BYTES = 8
_ALIGNMENT = 8
_MALFORMED = (
    json.JSONDecodeError,
    UnicodeDecodeError,
    KeyError,
    TypeError,
    AttributeError,
    IndexError,
    RecursionError,
)
_DTYPE_BYTES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "I16": 2,
    "U16": 2,
    "F16": 2,
    "BF16": 2,
    "I32": 4,
    "U32": 4,
    "F32": 4,
    "I64": 8,
    "U64": 8,
    "F64": 8,
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor to be written; `load` gives its little-endian values when its turn comes, so that
    only one tensor is in memory at a time."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    load: Callable[[], npt.NDArray[Any]]

    @property
    def nbytes(self) -> int:
        return _DTYPE_BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """What a header says about one tensor."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def write_safetensors(
    path: Path, tensors: Sequence[Tensor], *, on_bytes: Callable[[int, int], None]
) -> None:
    """Write `tensors` in order of their names; `on_bytes` gets (done, total) after each one."""
    ordered = sorted(tensors, key=lambda tensor: tensor.name)
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in ordered:
        end = offset + tensor.nbytes
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(_LENGTH_BYTES, "little") + encoded)
        done = 0
        for tensor in ordered:
            written = file.write(tensor.load().data.cast("B"))
            if written != tensor.nbytes:
                raise ValueError(f"{tensor.name} has {written} bytes, not {tensor.nbytes}")
            done += written
            on_bytes(done, offset)


def read_header(path: Path) -> list[TensorInfo]:
    """The tensors of a file, checked to lie in it without gap or overlap. Raises ValueError."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        if size < _LENGTH_BYTES or length > min(HEADER_BYTES_MAX, size - _LENGTH_BYTES):
            raise ValueError("the safetensors header is longer than the file or than 16 MiB")
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            entries = sorted(header.items(), key=lambda item: tuple(item[1]["data_offsets"]))
            offset = 0
            infos = []
            for name, entry in entries:
                offset = _check_entry(name, entry, offset)
                start = entry["data_offsets"][0]
                infos.append(
                    TensorInfo(name, entry["dtype"], tuple(entry["shape"]), offset - start)
                )
        except _MALFORMED as error:
            raise ValueError(f"the safetensors header is malformed: {error}") from None
    if offset != size - _LENGTH_BYTES - length:
        raise ValueError("the safetensors file is longer or shorter than its header says")
    return infos


def _check_entry(name: str, entry: dict[str, Any], offset: int) -> int:
    """Where the tensor ends. Raises ValueError unless it starts at `offset` and has its size."""
    shape, (start, end) = entry["shape"], entry["data_offsets"]
    if not all(type(item) is int and item >= 0 for item in (*shape, start, end)):
        raise ValueError(f"tensor {name[:64]!r} has a shape or offset that is no natural number")
    if entry["dtype"] not in _DTYPE_BYTES:
        raise ValueError(f"tensor {name[:64]!r} has an unknown type")
    if start != offset or end - start != _DTYPE_BYTES[entry["dtype"]] * math.prod(shape):
        raise ValueError(f"tensor {name[:64]!r} overlaps another or has the wrong size")
    return int(end)
