"""Attention over the cache: many rows with one new token each, or whole pieces of prompts.

Both write their new keys and values first and then read the cache in place. Which kernel serves
which was measured on two AVX-512 cores: with one token a row, two batched products are 1.1 (8 rows)
to 1.9 times (32 rows) as fast as torch's fused kernel; pieces of prompts are the other way round.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from capanode.engines.kv_cache import KvCache

# Decode reads every row up to a multiple of this: the views hold for that many steps, and a row's
# sums come out bit for bit the same whatever the longest row beside it is.
LENGTH_STEP = 32

# What one more call of the kernels costs per layer, in tokens read: about 40 us at 12 GB/s.
_CALL_COST_TOKENS = 640


class Attention(Protocol):
    """What a layer needs: `mixed` is [tokens, heads + 2 * kv_heads, head_dim], already rotated."""

    def __call__(self, layer: int, mixed: Tensor) -> Tensor:
        """Store the new keys and values, and return [tokens, heads * head_dim]."""
        ...


@dataclass(frozen=True, slots=True)
class Segment:
    """Neighbouring rows that attend together, padded to one length."""

    rows: range
    length: int


def plan_segments(lengths: Sequence[int]) -> list[Segment]:
    """Cut rows 0..n into segments so that the padding read and the extra calls cost least.

    One long row among short ones would otherwise make every row read its length.
    """
    padded = [-(-length // LENGTH_STEP) * LENGTH_STEP for length in lengths]
    if len(set(padded)) == 1:
        return [Segment(range(len(padded)), padded[0])]
    best: list[tuple[int, int]] = [(0, 0)]  # for each end: least cost, and where its last cut is
    for end in range(1, len(padded) + 1):
        longest, choices = 0, []
        for start in range(end - 1, -1, -1):
            longest = max(longest, padded[start])
            cost = best[start][0] + _CALL_COST_TOKENS + (end - start) * longest
            choices.append((cost, start))
        best.append(min(choices))
    segments: list[Segment] = []
    end = len(padded)
    while end:
        start = best[end][1]
        segments.append(Segment(range(start, end), max(padded[start:end])))
        end = start
    return segments[::-1]


class _SegmentBatch:
    """One segment's views of the cache, its mask and its scratch space for a step."""

    def __init__(self, cache: KvCache, segment: Segment, *, heads: int) -> None:
        shape = cache.shape
        self.rows, self.length = segment.rows, segment.length
        count = len(segment.rows)
        self._groups = heads // shape.kv_heads
        self._scale = shape.head_dim**-0.5
        self._views = [
            cache.keys_values(layer, segment.rows, segment.length) for layer in range(shape.layers)
        ]
        device = cache.layers[0].device
        self._positions = torch.arange(segment.length, device=device)
        self._mask = torch.empty((count, 1, 1, segment.length), dtype=shape.dtype, device=device)
        self._scores = torch.empty(
            (count, shape.kv_heads, self._groups, segment.length),
            dtype=shape.dtype,
            device=device,
        )

    def set_positions(self, positions: Tensor) -> None:
        """Show each row the keys up to and including its own position."""
        hidden = self._positions > positions[self.rows.start : self.rows.stop, None]
        self._mask.zero_().masked_fill_(hidden[:, None, None], -torch.inf)

    def __call__(self, layer: int, queries: Tensor) -> Tensor:
        """`queries` is [rows, heads, head_dim]; the result is [rows, heads * head_dim]."""
        keys, values = self._views[layer]
        scores = self._scores
        batch, groups, length = keys.shape[0], self._groups, self.length
        grouped = queries.reshape(batch, groups, -1)
        # Keys as the left factor: their rows are contiguous, so the kernel need not repack them.
        products = torch.bmm(keys, grouped.transpose(1, 2))
        by_row = products.view(scores.shape[0], -1, length, groups).transpose(2, 3)
        torch.add(self._mask, by_row, alpha=self._scale, out=scores)
        weights = torch.softmax(scores.view(batch, groups, length), -1)
        return torch.bmm(weights, values).view(scores.shape[0], -1)


class DecodeAttention:
    """One new token for each of rows 0..n. Kept from step to step while the rows stay the same."""

    def __init__(self, cache: KvCache, lengths: Sequence[int], *, heads: int) -> None:
        self._cache = cache
        self._heads = heads
        self._batches = [
            _SegmentBatch(cache, segment, heads=heads) for segment in plan_segments(lengths)
        ]
        self._rows = torch.arange(len(lengths), device=cache.layers[0].device)
        self._positions = self._rows

    def fits(self, lengths: Sequence[int]) -> bool:
        """True if the same number of rows, now of these lengths, can still be served."""
        return len(lengths) == len(self._rows) and all(
            lengths[row] <= batch.length for batch in self._batches for row in batch.rows
        )

    def set_positions(self, positions: Tensor) -> None:
        """Where each row's new token goes; call before each step."""
        self._positions = positions
        for batch in self._batches:
            batch.set_positions(positions)

    def __call__(self, layer: int, mixed: Tensor) -> Tensor:
        heads, batches = self._heads, self._batches
        torch.ops.aten.index_put_(
            self._cache.layers[layer], [self._rows, None, self._positions], mixed[:, heads:]
        )
        queries = mixed[:, :heads]
        if len(batches) == 1:
            return batches[0](layer, queries)
        parts = [batch(layer, queries[batch.rows.start : batch.rows.stop]) for batch in batches]
        return torch.cat(parts)


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of a prompt: tokens `start` to `start + count` of the job in `row`."""

    row: int
    start: int
    count: int


class PrefillAttention:
    """Pieces of several prompts, one after another; tokens after the last piece are padding."""

    def __init__(
        self,
        cache: KvCache,
        pieces: Sequence[Piece],
        rows: Tensor,
        positions: Tensor,
        *,
        heads: int,
    ) -> None:
        self._cache = cache
        self._heads = heads
        self._pieces = pieces
        self._rows, self._positions = rows, positions
        self._masks = [_causal_mask(piece, cache) for piece in pieces]

    def __call__(self, layer: int, mixed: Tensor) -> Tensor:
        heads, shape = self._heads, self._cache.shape
        torch.ops.aten.index_put_(
            self._cache.layers[layer], [self._rows, None, self._positions], mixed[:, heads:]
        )
        attended = mixed.new_zeros((mixed.shape[0], heads * shape.head_dim))
        offset = 0
        for piece, mask in zip(self._pieces, self._masks, strict=True):
            end = offset + piece.count
            queries = mixed[offset:end, :heads].view(
                piece.count, shape.kv_heads, heads // shape.kv_heads, shape.head_dim
            )
            keys, values = self._cache.keys_values(
                layer, range(piece.row, piece.row + 1), piece.start + piece.count
            )
            # Query heads that share a key head are the kernel's heads, and key heads its batch, so
            # that keys are broadcast by stride and not copied.
            groups = (-1, queries.shape[2], -1, -1)
            mixed_values = functional.scaled_dot_product_attention(
                queries.permute(1, 2, 0, 3),
                keys[:, None].expand(groups),
                values[:, None].expand(groups),
                attn_mask=mask,
                is_causal=mask is None,
            )
            attended[offset:end] = mixed_values.permute(2, 0, 1, 3).reshape(piece.count, -1)
            offset = end
        return attended


def _causal_mask(piece: Piece, cache: KvCache) -> Tensor | None:
    """None for the first piece of a prompt, which the kernel masks by itself."""
    if piece.start == 0:
        return None
    size = (piece.count, piece.start + piece.count)
    mask = torch.full(size, -torch.inf, dtype=cache.shape.dtype, device=cache.layers[0].device)
    return mask.triu_(piece.start + 1)
