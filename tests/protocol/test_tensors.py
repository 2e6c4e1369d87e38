"""Bounds of tensors: what is not exactly what its shape says is no tensor."""

import struct
from collections.abc import Callable
from typing import Any

import pytest

from protocol.codec import decode, encode
from protocol.errors import RemoteProtocolError
from protocol.limits import TENSOR_STRINGS_MAX, TENSORS_MAX
from protocol.tensors import (
    Datatype,
    ModelSignature,
    NamedTensor,
    TensorInput,
    TensorMetadata,
    TensorOutput,
    join_strings,
    split_strings,
)


def tensor(name: str = "x", shape: tuple[int, ...] = (2, 3)) -> NamedTensor:
    return NamedTensor(name, Datatype.UINT8, shape, bytes(6))


def strings(*texts: bytes, shape: tuple[int, ...] | None = None) -> NamedTensor:
    return NamedTensor("x", Datatype.BYTES, shape or (len(texts),), join_strings(texts))


def test_inputs_outputs_and_signatures_travel() -> None:
    job_input = TensorInput((tensor(), tensor("y")), ("sum",), context_rows=1)
    assert decode(TensorInput, encode(job_input)) == job_input
    output = TensorOutput((strings(b"a", b"", b"ccc"),))
    assert decode(TensorOutput, encode(output)) == output
    metadata = (TensorMetadata("x", Datatype.FP16, (-1, 3)),)
    signature = ModelSignature(metadata, metadata, 7)
    assert decode(ModelSignature, encode(signature)) == signature


@pytest.mark.parametrize(
    "make",
    [
        lambda: NamedTensor("x", Datatype.FP32, (2,), bytes(7)),
        lambda: NamedTensor("x", Datatype.FP32, (2,), bytes(12)),
        # As many bytes as a product that has overflowed 64 bits.
        lambda: NamedTensor("x", Datatype.UINT8, (2**32, 2**32), b""),
        lambda: NamedTensor("x", Datatype.UINT8, (0,), b""),
        lambda: NamedTensor("x", Datatype.UINT8, (-1,), b"a"),
        lambda: NamedTensor("x", Datatype.UINT8, (1,) * 9, b"a"),
        lambda: NamedTensor("", Datatype.UINT8, (1,), b"a"),
        lambda: NamedTensor("x", Datatype.BYTES, (2,), join_strings([b"one"])),
        lambda: NamedTensor("x", Datatype.BYTES, (1,), struct.pack("<I", 9) + b"short"),
        lambda: NamedTensor("x", Datatype.BYTES, (1,), b"abc"),
        lambda: strings(*[b""] * (TENSOR_STRINGS_MAX + 1)),
        lambda: TensorInput(()),
        lambda: TensorInput((tensor(), tensor())),
        lambda: TensorInput(tuple(tensor(str(n)) for n in range(TENSORS_MAX + 1))),
        lambda: TensorInput((tensor(),), ("a", "a")),
        lambda: TensorInput((tensor(),), context_rows=2),
        lambda: TensorInput((tensor(), tensor("y", (3, 2))), context_rows=1),
        lambda: TensorMetadata("x", Datatype.FP32, (-2,)),
        lambda: TensorMetadata("x", Datatype.FP32, (0,)),
    ],
)
def test_what_breaks_a_bound_is_no_tensor(make: Callable[[], Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        make()


def test_a_peer_that_breaks_a_bound_is_told() -> None:
    good = encode(TensorInput((tensor(),)))
    with pytest.raises(RemoteProtocolError):
        decode(TensorInput, good.replace(b"UINT8", b"UINT9"))
    with pytest.raises(RemoteProtocolError):
        decode(TensorInput, good.replace(bytes([2, 3]), bytes([2, 4])))


def test_elements_are_those_after_the_context() -> None:
    assert TensorInput((tensor(),)).elements == 6
    assert TensorInput((tensor(),), context_rows=1).elements == 3
    assert TensorInput((tensor(shape=(6,)), tensor("y", (1, 1, 6)))).elements == 12
    scalar = NamedTensor("x", Datatype.UINT8, (), b"a")
    assert TensorInput((scalar,)).elements == 1


def test_a_string_counts_by_its_length() -> None:
    texts = (b"", b"12345678", b"123456789", b"x")
    assert TensorInput((strings(*texts),)).elements == 1 + 1 + 2 + 1
    paired = strings(*texts, shape=(2, 2))
    assert TensorInput((paired,), context_rows=1).elements == 2 + 1


def test_strings_are_split_as_they_were_joined() -> None:
    texts = (b"", b"a\0b", b"ccc")
    assert split_strings(join_strings(texts)) == texts
    assert split_strings(b"") == ()


@pytest.mark.parametrize(
    ("shape", "fits"),
    [((5, 3), True), ((1, 3), True), ((5, 4), False), ((5,), False), ((5, 3, 1), False)],
)
def test_a_shape_fits_where_sizes_are_equal_or_free(shape: tuple[int, ...], fits: bool) -> None:
    assert TensorMetadata("x", Datatype.FP32, (-1, 3)).fits(shape) is fits
