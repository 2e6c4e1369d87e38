"""Matrix products of the hot path: oneDNN's kernels over weights that are packed once at load.

That makes bfloat16 products 1.3 (down, 32 rows) to 3.6 (output head, one row) times as fast as
`F.linear`, which reorders the weights on every call, and float32 ones 2.3 times as fast as MKL's on
AMD. The packed format does not depend on how many rows are multiplied. In bfloat16, up to
`INVARIANT_ROWS` rows, each row's result is bit for bit the same whatever the other rows are; above
that another blocking applies, again the same for any number.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Linear = Callable[[Tensor], Tensor]

# oneDNN 3.12 changes the order of summation of long rows between 32 and 33 rows (measured).
INVARIANT_ROWS = 32

# A single row this long it sums in parts, one by thread (seen at 1536, not at 576). Such a row is
# multiplied twice over: that costs 3 us, as the time goes into reading the weights.
_SPLIT_COLUMNS = 1024


def make_linear(weight: Tensor, bias: Tensor | None = None) -> Linear:
    """`x @ weight.T + bias` for 2-D `x`, in the fastest form for the weight's device and type."""
    if _is_packable(weight):
        return _packed_linear(weight, bias)
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


def _packed_linear(weight: Tensor, bias: Tensor | None) -> Linear:
    packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous())
    multiply = torch.ops.mkldnn._linear_pointwise.default
    is_split = weight.shape[1] >= _SPLIT_COLUMNS

    def linear(x: Tensor) -> Tensor:
        product: Tensor
        if is_split and len(x) == 1:
            product = multiply(x.expand(2, -1), packed, bias, "none", [], "")[:1]
        else:
            product = multiply(x, packed, bias, "none", [], "")
        return product

    return linear
