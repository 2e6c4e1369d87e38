"""One layer of a decoder: attention, then the MLP, each added to what it was given."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from capanode.engines.attention import Attention
from capanode.engines.decoder_config import Activation
from capanode.engines.linear import Linear
from capanode.engines.norms import HeadNorms, RmsNorm

# Cosines and signed sines for each of a token's heads, [tokens, heads + 2 * kv_heads, head_dim]:
# see `capanode.engines.rope`.
Rotation = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True)
class DecoderLayer:
    """Query, key and value weights are one matrix, and gate and up another."""

    attention_norm: RmsNorm
    qkv: Linear  # query heads, then key 0, value 0, key 1, value 1, ... as in the cache
    head_norms: HeadNorms | None
    output: Linear
    output_norm: RmsNorm | None
    mlp_norm: RmsNorm
    gate_up: Linear
    down: Linear
    down_norm: RmsNorm | None
    activation: Activation
    head_dim: int

    def __call__(
        self, index: int, hidden: Tensor, rotation: Rotation | None, attention: Attention
    ) -> Tensor:
        """`hidden` is [tokens, hidden_size], as is the result."""
        mixed = self.qkv(self.attention_norm(hidden)).view(len(hidden), -1, self.head_dim)
        if self.head_norms is not None:
            self.head_norms(mixed)
        if rotation is not None:
            cosines, sines = rotation
            mixed = (mixed * cosines).addcmul_(torch.roll(mixed, self.head_dim // 2, -1), sines)
        attended = self.output(attention(index, mixed))
        if self.output_norm is not None:
            attended = self.output_norm(attended)
        hidden = attended.add_(hidden)
        gate, up = self.gate_up(self.mlp_norm(hidden)).chunk(2, -1)
        # A new tensor and not in place: the product wants its input without gaps.
        mapped = self.down(self._activate(gate) * up)
        if self.down_norm is not None:
            mapped = self.down_norm(mapped)
        return mapped.add_(hidden)

    def _activate(self, gate: Tensor) -> Tensor:
        if self.activation is Activation.SILU:
            return functional.silu(gate, inplace=True)
        return functional.gelu(gate, approximate="tanh")
