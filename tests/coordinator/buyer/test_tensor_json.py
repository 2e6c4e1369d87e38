"""Tensors in JSON: each element as its datatype has it, or a sentence that says why not."""

from typing import Any

import pytest

from coordinator.buyer.tensor_json import numbers_of, tensor_of_plain
from protocol.tensors import Datatype, NamedTensor

ELEMENTS: dict[Datatype, list[Any]] = {
    Datatype.BOOL: [True, False],
    Datatype.UINT8: [0, 255],
    Datatype.UINT16: [0, 65_535],
    Datatype.UINT32: [0, 2**32 - 1],
    Datatype.UINT64: [0, 2**64 - 1],
    Datatype.INT8: [-128, 127],
    Datatype.INT16: [-(2**15), 2**15 - 1],
    Datatype.INT32: [-(2**31), 2**31 - 1],
    Datatype.INT64: [-(2**63), 2**63 - 1],
    Datatype.FP16: [0.5, -2.0],
    Datatype.BF16: [0.5, -3.0],
    Datatype.FP32: [0.25, -1.5],
    Datatype.FP64: [0.1, -1e300],
    Datatype.BYTES: ["", "äöü"],
}


@pytest.mark.parametrize("datatype", Datatype)
def test_elements_of_each_datatype_come_back(datatype: Datatype) -> None:
    tensor = tensor_of_plain("x", datatype, (2,), ELEMENTS[datatype])
    assert numbers_of(tensor) == ELEMENTS[datatype]


@pytest.mark.parametrize(
    ("datatype", "shape", "data"),
    [
        (Datatype.UINT8, (1,), [256]),
        (Datatype.UINT8, (1,), [-1]),
        (Datatype.INT64, (1,), [2**63]),
        (Datatype.INT32, (1,), [1.5]),
        (Datatype.INT32, (1,), [True]),
        (Datatype.FP32, (1,), ["1"]),
        (Datatype.FP32, (1,), [1e39]),
        (Datatype.FP16, (1,), [70_000]),
        (Datatype.BF16, (1,), [3.4e38]),
        (Datatype.FP64, (1,), [10**400]),
        (Datatype.BOOL, (1,), [1]),
        (Datatype.BYTES, (1,), [7]),
        (Datatype.FP32, (2,), [1.0]),
        (Datatype.FP32, (1,), [[[[[[[[[1.0]]]]]]]]]),
        (Datatype.FP32, (1,), {"a": 1}),
    ],
)
def test_what_is_no_element_is_refused(datatype: Datatype, shape: Any, data: Any) -> None:
    with pytest.raises(ValueError, match=r"it"):
        tensor_of_plain("x", datatype, shape, data)


def test_nested_and_flat_data_are_the_same() -> None:
    flat = tensor_of_plain("x", Datatype.INT32, (2, 2), [1, 2, 3, 4])
    assert tensor_of_plain("x", Datatype.INT32, (2, 2), [[1, 2], [3, 4]]) == flat


def test_what_is_no_number_is_null() -> None:
    tensor = NamedTensor("x", Datatype.FP16, (3,), b"\x00\x7c\x00\x7e\x00\x3c")
    assert numbers_of(tensor) == [None, None, 1.0]
