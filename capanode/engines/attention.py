"""Attention over the cache: rows with one new token each, or whole chunks of prompts.

Both write their new keys and values first and then read the cache in place. Which kernel serves
which was measured on AVX-512 cores. For decoding on a CPU, keys and values are copied to float32
and multiplied in two batches: 0.8 to 0.9 times the time of torch's fused kernel, with scores as
exact as its own. Batched products in bfloat16 would take another third off where rows are many, but
oneDNN compiles 0.7 MB of code for each new pair of row count and length. Chunks of prompts are what
the fused kernel is made for.
"""

import math
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

# What one more call of the kernels costs per layer, in tokens read: 20 us on one thread and up to
# 100 us where others must be woken, at 0.15 us a token.
_CALL_COST_TOKENS = 512

# Rows that attend together hold at most this many tokens, padding included, unless a single row is
# longer: their keys and values in float32 (6 MB in SmolLM2) then stay in the cache of the CPU.
SEGMENT_TOKENS_MAX = 4096


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
    best: list[tuple[int, int]] = [(0, 0)]  # for each end: least cost, and where its last cut is
    for end in range(1, len(padded) + 1):
        longest = 0
        choices: list[tuple[int, int]] = []
        for start in range(end - 1, -1, -1):
            longest = max(longest, padded[start])
            size = (end - start) * longest
            if size > SEGMENT_TOKENS_MAX and choices:
                break
            cost = best[start][0] + _CALL_COST_TOKENS + size
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
    """One segment's views of the cache and its mask. With a `shared_row` all of its rows read that
    one row of the cache."""

    def __init__(
        self,
        cache: KvCache,
        segment: Segment,
        scratch: Tensor,
        *,
        heads: int,
        shared_row: int | None = None,
    ) -> None:
        shape = cache.shape
        self.rows, self.length = segment.rows, segment.length
        self._groups = heads // shape.kv_heads
        self._scale = shape.head_dim**-0.5
        read = segment.rows if shared_row is None else range(shared_row, shared_row + 1)
        sizes = (len(segment.rows), shape.kv_heads, 2, segment.length, shape.head_dim)
        self._views = [
            cache.keys_values(layer, read, segment.length).view(len(read), *sizes[1:]).expand(sizes)
            for layer in range(shape.layers)
        ]
        # Where keys and values are computed with: in place if their type is the one computed in.
        self._copy = scratch[: math.prod(sizes)].view(sizes) if len(scratch) else None
        self._positions = torch.arange(segment.length, device=cache.layers[0].device)
        self._mask = scratch.new_empty((len(segment.rows), shape.kv_heads, 1, segment.length))

    def set_positions(self, positions: Tensor) -> None:
        """Show each row the keys up to and including its own position."""
        hidden = self._positions > positions[self.rows.start : self.rows.stop, None]
        self._mask.zero_().masked_fill_(hidden[:, None, None], -torch.inf)

    def __call__(self, layer: int, queries: Tensor) -> Tensor:
        """`queries` is [rows, heads, head_dim]; the result is [rows, heads * head_dim]."""
        both = self._views[layer]
        if self._copy is not None:
            both = self._copy.copy_(both)
        both = both.flatten(0, 1)
        grouped = queries.reshape(both.shape[0], self._groups, -1).to(both.dtype)
        scores = torch.baddbmm(
            self._mask.flatten(0, 1), grouped, both[:, 0].transpose(1, 2), alpha=self._scale
        )
        weights = torch.softmax(scores, -1)
        return torch.bmm(weights, both[:, 1]).view(len(self.rows), -1)


class _RowsAttention:
    """One new token for each row, each in a row of the cache and at a position of its own."""

    def __init__(
        self,
        cache: KvCache,
        lengths: Sequence[int],
        *,
        heads: int,
        shared_row: int | None = None,
    ) -> None:
        self._cache = cache
        self._heads = heads
        shape, device = cache.shape, cache.layers[0].device
        segments = plan_segments(lengths)
        # A GPU computes in what the cache holds.
        dtype = torch.float32 if device.type == "cpu" else shape.dtype
        tokens = max(len(segment.rows) * segment.length for segment in segments)
        size = 0 if dtype == shape.dtype else tokens * 2 * shape.kv_heads * shape.head_dim
        scratch = torch.empty(size, dtype=dtype, device=device)
        self._batches = [
            _SegmentBatch(cache, segment, scratch, heads=heads, shared_row=shared_row)
            for segment in segments
        ]
        count = len(lengths)
        self._rows = (
            torch.arange(count, device=device)
            if shared_row is None
            else torch.full((count,), shared_row, device=device)
        )
        self._positions = self._rows

    def set_positions(self, positions: Tensor) -> None:
        """Where each row's new token goes; call before each step."""
        self._positions = positions
        for batch in self._batches:
            batch.set_positions(positions)

    def __call__(self, layer: int, mixed: Tensor) -> Tensor:
        heads, count = self._heads, len(self._rows)
        torch.ops.aten.index_put_(
            self._cache.layers[layer], [self._rows, None, self._positions], mixed[:count, heads:]
        )
        # Rows after the last job's are padding: what they hold does not matter, if it is finite.
        attended = mixed.new_zeros((mixed.shape[0], heads * mixed.shape[2]))
        for batch in self._batches:
            first, last = batch.rows.start, batch.rows.stop
            attended[first:last] = batch(layer, mixed[first:last, :heads])
        return attended


class DecodeAttention(_RowsAttention):
    """One new token for each of rows 0..n. Kept from step to step while the rows stay the same."""

    def __init__(self, cache: KvCache, lengths: Sequence[int], *, heads: int) -> None:
        super().__init__(cache, lengths, heads=heads)

    def fits(self, lengths: Sequence[int]) -> bool:
        """True if the same number of rows, now of these lengths, can still be served."""
        return len(lengths) == len(self._rows) and all(
            lengths[row] <= batch.length for batch in self._batches for row in batch.rows
        )


class ReplayAttention(_RowsAttention):
    """Tokens of one job that were decoded before, one after another from `start`, taken in at once
    as if each were decoded: the same kernels see the same numbers, so the cache comes out alike."""

    def __init__(self, cache: KvCache, row: int, start: int, count: int, *, heads: int) -> None:
        lengths = range(start + 1, start + count + 1)
        super().__init__(cache, lengths, heads=heads, shared_row=row)


@dataclass(frozen=True, slots=True)
class PrefillChunk:
    """Part of a prompt: tokens `start` to `start + count` of the job in `row`."""

    row: int
    start: int
    count: int


class PrefillAttention:
    """Chunks of several prompts, one after another; tokens after the last chunk are padding."""

    def __init__(
        self,
        cache: KvCache,
        chunks: Sequence[PrefillChunk],
        rows: Tensor,
        positions: Tensor,
        *,
        heads: int,
    ) -> None:
        self._cache = cache
        self._heads = heads
        self._chunks = chunks
        self._rows, self._positions = rows, positions
        self._masks = [_causal_mask(chunk, cache) for chunk in chunks]

    def __call__(self, layer: int, mixed: Tensor) -> Tensor:
        heads, shape = self._heads, self._cache.shape
        torch.ops.aten.index_put_(
            self._cache.layers[layer], [self._rows, None, self._positions], mixed[:, heads:]
        )
        attended = mixed.new_zeros((mixed.shape[0], heads * shape.head_dim))
        offset = 0
        for chunk, mask in zip(self._chunks, self._masks, strict=True):
            end = offset + chunk.count
            queries = mixed[offset:end, :heads].view(
                chunk.count, shape.kv_heads, heads // shape.kv_heads, shape.head_dim
            )
            keys, values = self._cache.keys_values(
                layer, range(chunk.row, chunk.row + 1), chunk.start + chunk.count
            ).unbind(1)
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
            attended[offset:end] = mixed_values.permute(2, 0, 1, 3).reshape(chunk.count, -1)
            offset = end
        return attended


def _causal_mask(chunk: PrefillChunk, cache: KvCache) -> Tensor | None:
    """None for the first chunk of a prompt, which the kernel masks by itself."""
    if chunk.start == 0:
        return None
    size = (chunk.count, chunk.start + chunk.count)
    mask = torch.full(size, -torch.inf, dtype=cache.shape.dtype, device=cache.layers[0].device)
    return mask.triu_(chunk.start + 1)
