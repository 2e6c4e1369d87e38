"""Root mean square norms, in the fastest form for the device."""

import torch
from torch import Tensor
from torch.nn import functional


class RmsNorm:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension of a 2-D `x`."""

    def __init__(self, weight: Tensor, eps: float, *, dtype: torch.dtype) -> None:
        """`dtype` is that of `x`. A weight in float32 is applied before the result is rounded."""
        self._weight, self._eps = weight.clone(), eps
        self._shape = (2, *weight.shape)
        self._twice = weight.expand(self._shape).contiguous()
        self._signs = torch.tensor([[1.0], [-1.0]], dtype=dtype, device=weight.device)
        self._on_cpu = weight.device.type == "cpu"

    def __call__(self, x: Tensor) -> Tensor:
        if not self._on_cpu:
            # Its fused kernel takes one type only.
            wide = x.to(self._weight.dtype)
            return functional.rms_norm(wide, self._weight.shape, self._weight, self._eps).to(
                x.dtype
            )
        # torch 2.13 has no fused kernel for this on CPU, but one for layer norm. Over x and -x side
        # by side the mean is 0 and the variance is mean(x^2): the same numbers in half the time.
        both = x.unsqueeze(1) * self._signs
        return functional.layer_norm(both, self._shape, self._twice, None, self._eps)[:, 0]


class HeadNorms:
    """Norms queries and keys head by head, in place, where values lie between the keys."""

    def __init__(self, queries: RmsNorm, keys: RmsNorm, *, heads: int) -> None:
        self._queries, self._keys, self._heads = queries, keys, heads

    def __call__(self, mixed: Tensor) -> None:
        """`mixed` is [tokens, heads + 2 * kv_heads, head_dim]: the query heads, then key 0, value
        0, key 1, ..."""
        for norm, part in (
            (self._queries, mixed[:, : self._heads]),
            (self._keys, mixed[:, self._heads :: 2]),
        ):
            part.copy_(norm(part.reshape(-1, part.shape[-1])).view(part.shape))
