"""Keys and values of every running job: one row a job, grown by the operating system page by page.

Each row has address space for a whole context, but only the pages that hold tokens take memory, and
a row that is released gives them back. The MMU is the page table: attention reads rows in place,
where a paged cache in plain torch would copy every key and value at every step.

Rows interleave keys and values by head ([key 0, value 0, key 1, ...]), so that one indexed write
stores both and all keys (or values) of neighbouring rows are one strided batch.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from capanode.engines.lazy_memory import LazyMemory


@dataclass(frozen=True, slots=True)
class CacheShape:
    layers: int
    rows: int
    kv_heads: int
    context_tokens: int
    head_dim: int
    dtype: torch.dtype

    @property
    def token_bytes(self) -> int:
        return self.layers * 2 * self.kv_heads * self.head_dim * self.dtype.itemsize

    @property
    def address_bytes(self) -> int:
        return self.token_bytes * self.context_tokens * self.rows


class KvCache:
    """`layers[i]` has shape [rows, 2 * kv_heads, context_tokens, head_dim]."""

    # A row takes memory by the token.
    granule_tokens = 1

    def __init__(self, shape: CacheShape, *, device: torch.device) -> None:
        self.shape = shape
        sizes = (
            shape.layers,
            shape.rows,
            2 * shape.kv_heads,
            shape.context_tokens,
            shape.head_dim,
        )
        self._memory = LazyMemory(
            sizes,
            shape.dtype,
            device,
            block_bytes=shape.address_bytes // (shape.layers * shape.rows),
        )
        self.device = device
        self.layers: tuple[Tensor, ...] = self._memory.tensor.unbind(0)

    def tokens(self, row: int, places: range) -> Tensor:
        """A view of some tokens of a row: [layers, 2 * kv_heads, len(places), head_dim]."""
        return self._memory.tensor[:, row, :, places.start : places.stop]

    def keys_values(self, layer: int, rows: range, length: int) -> Tensor:
        """A view of the first `length` keys and values: [rows * kv_heads, 2, length, head_dim]."""
        shape = self.shape
        heads = self.layers[layer].view(
            shape.rows * shape.kv_heads, 2, shape.context_tokens, shape.head_dim
        )
        return heads[rows.start * shape.kv_heads : rows.stop * shape.kv_heads, :, :length]

    def clear(self, row: int, places: range) -> None:
        """Forget some tokens of a row: they read as zeros, as if they had not been there."""
        if places:
            self.tokens(row, places).zero_()

    def move(self, source: int, target: int, length: int, target_length: int) -> None:
        """Copy `length` tokens over a row that held `target_length`, then release the source."""
        for layer in self.layers:
            layer[target, :, :length].copy_(layer[source, :, :length])
            if target_length > length:
                layer[target, :, length:target_length].zero_()
        self.release(source, length)

    def swap(self, first: int, first_length: int, second: int, second_length: int) -> None:
        """Exchange two rows that are both in use."""
        length = max(first_length, second_length)
        for layer in self.layers:
            kept = layer[first, :, :length].clone()
            layer[first, :, :length].copy_(layer[second, :, :length])
            layer[second, :, :length].copy_(kept)

    def release(self, row: int, length: int) -> None:
        """Forget a row of `length` tokens. It reads as zeros afterwards: leftovers of one job must
        not meet another's attention, where even a masked NaN would spread."""
        if not self._memory.can_give_back:
            for layer in self.layers:
                layer[row, :, :length].zero_()
            return
        for index in range(self.shape.layers):
            self._memory.give_back(index * self.shape.rows + row)
