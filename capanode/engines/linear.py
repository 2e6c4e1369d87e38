"""Matrix products of the hot path: oneDNN's kernels over weights that are packed once at load.

That makes bfloat16 products 1.3 (down, 32 rows) to 3.6 (output head, one row) times as fast as
`F.linear`, which reorders the weights on every call, and float32 ones 2.3 times as fast as MKL's on
AMD. The packed format does not depend on how many rows are multiplied. In bfloat16, for 2 to
`INVARIANT_ROWS` rows, each row's result is bit for bit the same whatever the other rows are; above
that another blocking applies, again the same for any number.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Linear = Callable[[Tensor], Tensor]

# oneDNN 3.12 changes the order of summation of long rows between 32 and 33 rows, and sums a single
# row in parts (both measured). It compiles kernels for each number of rows, half a megabyte each:
# hence few numbers. Up to four rows cost the same, as reading the weights takes the time.
INVARIANT_ROWS = 32
_ROWS_STEP = 4
_MANY_ROWS = (*range(48, 128, 16), *range(128, 513, 64))


def padded_rows(count: int) -> int:
    """How many rows to multiply where `count` are wanted, at most `INVARIANT_ROWS`."""
    return -(-count // _ROWS_STEP) * _ROWS_STEP


def padded_many_rows(count: int) -> int:
    """How many rows to multiply where any number is wanted: always more than `INVARIANT_ROWS`, so
    that each row is computed alike whatever the number is."""
    return next((rows for rows in _MANY_ROWS if rows >= count), -(-count // 64) * 64)


def many_rows_up_to(count: int) -> list[int]:
    """All results of `padded_many_rows` for up to `count` rows."""
    return [rows for rows in _MANY_ROWS if rows <= padded_many_rows(count)]


def rows_up_to(count: int) -> list[int]:
    """All results of `padded_rows` for up to `count` rows."""
    return list(range(_ROWS_STEP, padded_rows(count) + 1, _ROWS_STEP))


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """`x @ weight.T + bias` for 2-D `x`, in the fastest form for the weight's device and type."""
    if _is_packable(weight):
        return _packed_linear(weight, bias)
    if weight.device.type == "cpu" and weight.dtype == torch.bfloat16:
        widened = weight.float()
        if _is_packable(widened):
            return _widened_linear(widened, bias)
    kept = weight.contiguous()

    def plain(x: Tensor) -> Tensor:
        return functional.linear(x, kept, bias)

    return plain


def _is_packable(weight: Tensor) -> bool:
    """True if oneDNN computes natively in this type here (bfloat16 takes AVX-512 or AMX)."""
    if weight.device.type != "cpu" or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch's
        return False
    if weight.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return weight.dtype == torch.float32


def _widened_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    """bfloat16 in and out, float32 within. On a processor without bfloat16 (AVX2), `F.linear` in
    bfloat16 takes four times as long for 8 rows and seven times for 64; the weights take twice the
    memory."""
    multiply = _packed_linear(weight, bias.float() if bias is not None else None)

    def linear(x: Tensor) -> Tensor:
        return multiply(x.float()).to(torch.bfloat16)

    return linear


def _packed_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    multiply = torch.ops.mkldnn._linear_pointwise.default

    def linear(x: Tensor) -> Tensor:
        product: Tensor = multiply(x, packed, bias, "none", [], "")
        return product

    return linear
