"""Tensors as people and programs write them in JSON: the names of the Open Inference Protocol, and
elements as a list, flat or nested, in the order of rows."""

import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any

from protocol.limits import TENSOR_RANK_MAX
from protocol.tensors import Datatype, NamedTensor, join_strings

# As `struct` names the elements. BF16 is the upper half of a float32.
_CODES = {
    Datatype.UINT8: "B",
    Datatype.UINT16: "H",
    Datatype.UINT32: "I",
    Datatype.UINT64: "Q",
    Datatype.INT8: "b",
    Datatype.INT16: "h",
    Datatype.INT32: "i",
    Datatype.INT64: "q",
    Datatype.FP16: "e",
    Datatype.BF16: "f",
    Datatype.FP32: "f",
    Datatype.FP64: "d",
}
_FLOATS = frozenset({Datatype.FP16, Datatype.BF16, Datatype.FP32, Datatype.FP64})


def tensor_of_plain(name: str, datatype: Datatype, shape: Sequence[int], data: Any) -> NamedTensor:
    """Raises ValueError with a sentence for the user."""
    flat = list(_flatten(data)) if isinstance(data, list) else [data]
    if len(flat) != math.prod(shape):
        raise ValueError(f"it has {len(flat)} elements, and its shape {math.prod(shape)}")
    return NamedTensor(name, datatype, tuple(shape), _pack(datatype, flat))


def numbers_of(tensor: NamedTensor) -> list[Any]:
    """The elements, flat. What is no number is None, for which JSON has a word. Raises ValueError
    if a string is not UTF-8."""
    if tensor.datatype is Datatype.BYTES:
        return [string.decode() for string in tensor.strings()]
    if tensor.datatype is Datatype.BOOL:
        return [byte != 0 for byte in tensor.data]
    numbers = _unpack(tensor)
    if tensor.datatype in _FLOATS:
        return [number if math.isfinite(number) else None for number in numbers]
    return list(numbers)


def _unpack(tensor: NamedTensor) -> tuple[Any, ...]:
    data = tensor.data
    if tensor.datatype is Datatype.BF16:
        data = b"".join(b"\0\0" + data[at : at + 2] for at in range(0, len(data), 2))
    return struct.unpack(f"<{tensor.elements}{_CODES[tensor.datatype]}", data)


def _flatten(items: list[Any], depth: int = 1) -> Iterator[Any]:
    if depth > TENSOR_RANK_MAX:
        raise ValueError(f"its data nests deeper than {TENSOR_RANK_MAX}")
    for item in items:
        if isinstance(item, list):
            yield from _flatten(item, depth + 1)
        else:
            yield item


def _pack(datatype: Datatype, flat: list[Any]) -> bytes:
    if datatype is Datatype.BYTES:
        _check_kind(flat, (str,), "texts")
        return join_strings(text.encode("utf-8") for text in flat)
    if datatype is Datatype.BOOL:
        _check_kind(flat, (bool,), "true or false")
        return bytes(flat)
    if datatype in _FLOATS:
        _check_kind(flat, (int, float), "numbers")
    else:
        _check_kind(flat, (int,), "integers")
    try:
        packed = struct.pack(f"<{len(flat)}{_CODES[datatype]}", *flat)
    except (struct.error, OverflowError):
        raise ValueError(f"one of its elements is no {datatype}") from None
    return _to_bf16(packed) if datatype is Datatype.BF16 else packed


def _to_bf16(data: bytes) -> bytes:
    """From float32, rounded to nearest, ties to even."""
    rounded = []
    for (bits,) in struct.iter_unpack("<I", data):
        half = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        if half & 0x7F80 == 0x7F80:
            raise ValueError("one of its elements is no BF16")
        rounded.append(half)
    return struct.pack(f"<{len(rounded)}H", *rounded)


def _check_kind(flat: list[Any], kinds: tuple[type, ...], words: str) -> None:
    # By exact type: a bool is an int in Python, and no number in JSON.
    if not all(type(item) in kinds for item in flat):
        raise ValueError(f"its elements must be {words}")
