"""Matrix products of the hot path: oneDNN's prepacked bfloat16 kernels where the CPU has them.

Packing once at load makes products 1.3 (down, 32 rows) to 3.6 (output head, one row) times as fast
as `F.linear`, which reorders the weights on every call. The packed format does not depend on how
many rows are multiplied, and up to `INVARIANT_ROWS` rows each row's result is bit for bit the same
whatever the other rows are. Above that another blocking applies, again the same for any number.
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
    if is_packable(weight.device, weight.dtype):
        return _packed_linear(weight, bias)
    kept = weight.contiguous()

    def plain(x: Tensor) -> Tensor:
        return functional.linear(x, kept, bias)

    return plain


def is_packable(device: torch.device, dtype: torch.dtype) -> bool:
    """True if oneDNN computes natively in this type here (AVX-512 or AMX for bfloat16)."""
    return (
        device.type == "cpu"
        and dtype == torch.bfloat16
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch's
        and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    )


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
