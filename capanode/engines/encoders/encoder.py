"""The one interface of encoders, and the weights that all of them take the same way."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from capanode.engines.encoders.text_batch import TextBatch
from capanode.engines.linear import Linear, make_linear
from capanode.engines.weights import Weights


class Encoder(Protocol):
    """Weights and the forward pass, in float32."""

    @property
    def name(self) -> str:
        """With its version, as receipts state it."""
        ...

    @property
    def dimensions(self) -> int: ...

    @property
    def tokens_max(self) -> int:
        """The longest text that has positions."""
        ...

    def encode(self, batch: TextBatch) -> Tensor:
        """The states of the batch's tokens, [rows, dimensions]."""
        ...


@dataclass(frozen=True, slots=True)
class Norm:
    """A layer norm; older models have a bias, newer ones none."""

    weight: Tensor
    bias: Tensor | None
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, self.eps)


class EncoderWeights:
    """A model's tensors in float32 on a device, below one prefix: classifiers keep their encoder
    under a name of its own."""

    def __init__(self, weights: Weights, prefix: str, device: torch.device) -> None:
        self._weights, self._prefix, self._device = weights, prefix, device

    def take(self, name: str, *shape: int) -> Tensor:
        """Raises ModelLoadError."""
        tensor = self._weights.take(f"{self._prefix}{name}", shape, torch.float32)
        return tensor.to(self._device, copy=True)

    def norm(self, name: str, size: int, eps: float, *, has_bias: bool = True) -> Norm:
        bias = self.take(f"{name}.bias", size) if has_bias else None
        return Norm(self.take(f"{name}.weight", size), bias, eps)

    def linear(self, name: str, rows: int, columns: int, *, has_bias: bool = True) -> Linear:
        weight = self.take(f"{name}.weight", rows, columns)
        return make_linear(weight, self.take(f"{name}.bias", rows) if has_bias else None)

    def joined(self, names: list[str], sizes: list[int], columns: int, *, has_bias: bool) -> Linear:
        """Several products of one input as a single one."""
        pairs = list(zip(names, sizes, strict=True))
        weight = torch.cat([self.take(f"{name}.weight", size, columns) for name, size in pairs])
        if not has_bias:
            return make_linear(weight)
        return make_linear(weight, torch.cat([self.take(f"{n}.bias", size) for n, size in pairs]))
