"""Keys and values of every running job: one row a job, grown by the operating system page by page.

Each row has address space for a whole context, but only the pages that hold tokens take memory, and
a row that is released gives them back. The MMU is the page table: attention reads rows in place,
where a paged cache in plain torch would copy every key and value at every step.

Rows interleave keys and values by head ([key 0, value 0, key 1, ...]), so that one indexed write
stores both and all keys (or values) of neighbouring rows are one strided batch.
"""

import mmap
from dataclasses import dataclass

import torch
from torch import Tensor


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

    def __init__(self, shape: CacheShape, *, device: torch.device) -> None:
        self.shape = shape
        sizes = (
            shape.layers,
            shape.rows,
            2 * shape.kv_heads,
            shape.context_tokens,
            shape.head_dim,
        )
        self._row_bytes = shape.address_bytes // (shape.layers * shape.rows)
        self._pages: mmap.mmap | None = None
        is_page_aligned = self._row_bytes % mmap.PAGESIZE == 0
        if device.type == "cpu" and is_page_aligned and hasattr(mmap, "MADV_NOHUGEPAGE"):
            # Private: pages of a shared mapping keep their content when they are given back.
            private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
            self._pages = mmap.mmap(-1, shape.address_bytes, flags=private)
            # A huge page would make memory of 2 MiB where a short job needs 4 KiB.
            self._pages.madvise(mmap.MADV_NOHUGEPAGE)
            whole = torch.frombuffer(self._pages, dtype=shape.dtype).view(sizes)
        else:
            whole = torch.zeros(sizes, dtype=shape.dtype, device=device)
        self.layers: tuple[Tensor, ...] = whole.unbind(0)

    def keys_values(self, layer: int, rows: range, length: int) -> Tensor:
        """A view of the first `length` keys and values: [rows * kv_heads, 2, length, head_dim]."""
        shape = self.shape
        heads = self.layers[layer].view(
            shape.rows * shape.kv_heads, 2, shape.context_tokens, shape.head_dim
        )
        return heads[rows.start * shape.kv_heads : rows.stop * shape.kv_heads, :, :length]

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
        if self._pages is None:
            for layer in self.layers:
                layer[row, :, :length].zero_()
            return
        for index in range(self.shape.layers):
            start = (index * self.shape.rows + row) * self._row_bytes
            self._pages.madvise(mmap.MADV_DONTNEED, start, self._row_bytes)
