"""Named typed tensors: what task `tensor` takes and answers, and what a model says of both.

Datatypes are those of the Open Inference Protocol. Data is raw, row-major and little-endian; an
element of BYTES is a length of four bytes and so many bytes. A *row* is one index of the first
dimension: where models have a batch, rows are its records.
"""

import math
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from protocol.fields import check
from protocol.limits import (
    NAME_CHARS_MAX,
    OUTPUT_BYTES_MAX,
    STREAM_ID_BYTES,
    TENSOR_RANK_MAX,
    TENSOR_STRINGS_MAX,
    TENSORS_MAX,
    WINDOW_ROWS_MAX,
)

_LENGTH_BYTES = 4


class Datatype(StrEnum):
    """The type of a tensor's elements."""

    BOOL = "BOOL"
    UINT8 = "UINT8"
    UINT16 = "UINT16"
    UINT32 = "UINT32"
    UINT64 = "UINT64"
    INT8 = "INT8"
    INT16 = "INT16"
    INT32 = "INT32"
    INT64 = "INT64"
    FP16 = "FP16"
    BF16 = "BF16"
    FP32 = "FP32"
    FP64 = "FP64"
    BYTES = "BYTES"


# How array libraries write the type of an element. They have none for BF16, the upper half of a
# float32; elements of BYTES differ in size.
ARRAY_TYPES = {
    Datatype.BOOL: "<u1",
    Datatype.UINT8: "<u1",
    Datatype.UINT16: "<u2",
    Datatype.UINT32: "<u4",
    Datatype.UINT64: "<u8",
    Datatype.INT8: "<i1",
    Datatype.INT16: "<i2",
    Datatype.INT32: "<i4",
    Datatype.INT64: "<i8",
    Datatype.FP16: "<f2",
    Datatype.BF16: "<u2",
    Datatype.FP32: "<f4",
    Datatype.FP64: "<f8",
}
ELEMENT_BYTES = {datatype: int(text[-1]) for datatype, text in ARRAY_TYPES.items()}


@dataclass(frozen=True, slots=True)
class NamedTensor:
    """A tensor with its elements. An empty shape is one element."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]
    data: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        check(len(self.shape) <= TENSOR_RANK_MAX, "a tensor has too many dimensions")
        check(all(size > 0 for size in self.shape), "a dimension of a tensor is below 1")
        check(len(self.data) <= OUTPUT_BYTES_MAX, "a tensor is too large")
        # Integers of Python do not overflow, and the size of the data bounds the product.
        if self.datatype is Datatype.BYTES:
            check(self.elements <= TENSOR_STRINGS_MAX, "a tensor has too many strings")
            check(self._has_strings(), "a tensor of BYTES does not hold what its shape says")
        else:
            size = self.elements * ELEMENT_BYTES[self.datatype]
            check(size == len(self.data), "a tensor's data does not have the size of its shape")

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def rows(self) -> int:
        return self.shape[0] if self.shape else 1

    def strings(self) -> tuple[bytes, ...]:
        """The elements of a tensor of BYTES."""
        return split_strings(self.data)

    def _has_strings(self) -> bool:
        try:
            return len(split_strings(self.data, limit=self.elements)) == self.elements
        except ValueError:
            return False


@dataclass(frozen=True, slots=True)
class TensorMetadata:
    """What a model says of one of its inputs or outputs; -1 is a dimension of any size."""

    name: str
    datatype: Datatype
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        _check_name(self.name)
        check(len(self.shape) <= TENSOR_RANK_MAX, "a tensor has too many dimensions")
        check(all(-1 <= size < 2**31 and size for size in self.shape), "no size of a dimension")

    def fits(self, shape: Sequence[int]) -> bool:
        return len(shape) == len(self.shape) and all(
            wanted in (-1, size) for wanted, size in zip(self.shape, shape, strict=True)
        )


@dataclass(frozen=True, slots=True)
class ModelSignature:
    """All inputs and outputs of a tensor model. With `window_rows` an answer to a row depends on so
    many rows at most, itself and those before it; 0 is a model that looks at each row alone."""

    inputs: tuple[TensorMetadata, ...]
    outputs: tuple[TensorMetadata, ...]
    window_rows: int = 0

    def __post_init__(self) -> None:
        _check_names(self.inputs, TENSORS_MAX)
        _check_names(self.outputs, TENSORS_MAX)
        check(0 <= self.window_rows <= WINDOW_ROWS_MAX, "the window is out of range")


@dataclass(frozen=True, slots=True)
class StreamPlace:
    """Where a job stands in a stream: `first_row` is the number of the first row that is not
    answered yet. A node that keeps windows has the last rows of `stream_id` after the job. One that
    `is_continued` brings none of the rows before: a node that does not have exactly those before
    `first_row` refuses it (STATE_MISSING). Streams of two clients never meet."""

    stream_id: bytes
    first_row: int
    is_continued: bool = False

    def __post_init__(self) -> None:
        check(len(self.stream_id) == STREAM_ID_BYTES, f"a stream's id has {STREAM_ID_BYTES} bytes")
        check(self.first_row >= 0, "a row's number is below 0")


@dataclass(frozen=True, slots=True)
class TensorInput:
    """`outputs` names those that are wanted; none named are all. The first `context_rows` rows of
    every input were answered before: they are looked at, neither answered nor metered again."""

    inputs: tuple[NamedTensor, ...]
    outputs: tuple[str, ...] = ()
    context_rows: int = 0
    place: StreamPlace | None = None

    def __post_init__(self) -> None:
        _check_names(self.inputs, TENSORS_MAX)
        check(len(self.outputs) <= TENSORS_MAX, "too many outputs")
        check(len(set(self.outputs)) == len(self.outputs), "an output is named twice")
        for name in self.outputs:
            _check_name(name)
        check(0 <= self.context_rows < WINDOW_ROWS_MAX, "the context is out of range")
        if self.context_rows:
            rows = {tensor.rows for tensor in self.inputs}
            check(len(rows) == 1, "inputs with a context have different numbers of rows")
            check(self.context_rows < min(rows), "there is nothing after the context")
            is_continued = self.place is not None and self.place.is_continued
            check(not is_continued, "a job that is continued brings a context")

    @property
    def elements(self) -> int:
        """What is metered: the elements of all inputs, without those of the context. Eight bytes of
        a string, the size of the largest number, are an element."""
        return sum(self._elements_of(tensor) for tensor in self.inputs)

    def _elements_of(self, tensor: NamedTensor) -> int:
        if tensor.datatype is not Datatype.BYTES:
            return tensor.elements // tensor.rows * (tensor.rows - self.context_rows)
        skipped = tensor.elements // tensor.rows * self.context_rows
        strings = tensor.strings()[skipped:]
        return sum(max(1, -(-len(string) // 8)) for string in strings)


@dataclass(frozen=True, slots=True)
class TensorOutput:
    """The wanted outputs, in the order asked for, or in the model's."""

    outputs: tuple[NamedTensor, ...]

    def __post_init__(self) -> None:
        _check_names(self.outputs, TENSORS_MAX)


def split_strings(data: bytes, *, limit: int = TENSOR_STRINGS_MAX) -> tuple[bytes, ...]:
    """The elements of BYTES. Raises ValueError if the data is not exactly that, or has more."""
    found: list[bytes] = []
    at = 0
    while at < len(data):
        if len(found) == limit or at + _LENGTH_BYTES > len(data):
            raise ValueError("the data holds more strings than it should, or ends within one")
        (size,) = struct.unpack_from("<I", data, at)
        at += _LENGTH_BYTES + size
        if at > len(data):
            raise ValueError("a string is longer than the data that is left")
        found.append(data[at - size : at])
    return tuple(found)


def join_strings(strings: Iterable[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(string)) + string for string in strings)


def _check_name(name: str) -> None:
    check(0 < len(name) <= NAME_CHARS_MAX, "a tensor's name is empty or too long")


def _check_names(tensors: Sequence[NamedTensor] | Sequence[TensorMetadata], count_max: int) -> None:
    check(0 < len(tensors) <= count_max, "no tensors, or too many")
    check(len({t.name for t in tensors}) == len(tensors), "a tensor is named twice")
