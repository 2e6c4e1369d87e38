"""Tensors as people and programs write them in JSON: the names of the Open Inference Protocol, and
elements as a list, flat or nested, in the order of rows."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from protocol.limits import TENSOR_RANK_MAX
from protocol.tensors import ARRAY_TYPES, Datatype, NamedTensor, join_strings

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
    numbers: list[Any] = _array(tensor).tolist()
    if tensor.datatype in _FLOATS:
        return [number if math.isfinite(number) else None for number in numbers]
    return numbers


def _array(tensor: NamedTensor) -> npt.NDArray[Any]:
    if tensor.datatype is Datatype.BF16:
        return (np.frombuffer(tensor.data, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(tensor.data, ARRAY_TYPES[tensor.datatype])


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
    if datatype not in _FLOATS:
        _check_kind(flat, (int,), "integers")
        try:
            return np.array(flat, ARRAY_TYPES[datatype]).tobytes()
        except OverflowError:
            raise ValueError(f"one of its elements is no {datatype}") from None
    _check_kind(flat, (int, float), "numbers")
    with np.errstate(over="ignore"):
        try:
            numbers = np.array(flat, np.float64)
        except OverflowError:
            raise ValueError(f"one of its elements is no {datatype}") from None
        halves = datatype is Datatype.BF16
        narrow = numbers.astype("<f4" if halves else ARRAY_TYPES[datatype])
    if not np.isfinite(narrow).all():
        raise ValueError(f"one of its elements is no {datatype}")
    return _to_bf16(narrow) if halves else narrow.tobytes()


def _to_bf16(numbers: npt.NDArray[np.float32]) -> bytes:
    """Rounded to nearest, ties to even."""
    bits = numbers.view("<u4").astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    if ((rounded & 0x7F80) == 0x7F80).any():
        raise ValueError("one of its elements is no BF16")
    return rounded.astype("<u2").tobytes()


def _check_kind(flat: list[Any], kinds: tuple[type, ...], words: str) -> None:
    # By exact type: a bool is an int in Python, and no number in JSON.
    if not all(type(item) in kinds for item in flat):
        raise ValueError(f"its elements must be {words}")
