"""Attention over a `PagedCache`: prompts' chunks and next tokens go through one kernel, which reads
block tables. Not seen on a GPU yet: tests put `plain_varlen` in the kernel's place.

`num_splits` is 1: then a row's result does not depend on the rows beside it, and the automatic
choice has given NaN on SM 8.0 and 8.6 (torchtitan#3235).
"""

from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from capanode.engines.attention import PrefillChunk
from capanode.engines.attention_rules import AttentionRules
from capanode.engines.paged_cache import PAGE_TOKENS, PagedCache
from capanode.engines.varlen_plain import plain_varlen

# `torch.nn.attention.varlen.varlen_attn`, or what stands in for it.
Kernel = Callable[..., Any]


class _PagedAttention:
    """Queries of several rows, one row's after another's; tokens after the last are padding."""

    def __init__(
        self,
        cache: PagedCache,
        rules: AttentionRules,
        kernel: Kernel,
        *,
        rows: Sequence[int],
        counts: Sequence[int],
        length_max: int,
        table: Tensor | None = None,
    ) -> None:
        self._cache, self._rules, self._kernel = cache, rules, kernel
        self._counts_max, self._length_max = max(counts), length_max
        ends = list(accumulate(counts, initial=0))
        self._queries = ends[-1]
        self._ends = torch.tensor(ends, dtype=torch.int32, device=cache.device)
        self._table = cache.block_table(rows) if table is None else table
        self._used = self._ends[1:]
        self._places = self._ends

    def _set_next(self, positions: Tensor) -> None:
        """One token for each row, at these positions."""
        pages = self._table.gather(1, (positions // PAGE_TOKENS)[:, None])[:, 0]
        self._places = pages.long() * PAGE_TOKENS + positions % PAGE_TOKENS
        self._used = (positions + 1).to(torch.int32)

    def _attend(self, layer: int, mixed: Tensor) -> Tensor:
        heads, rule, pool = self._rules.heads, self._rules.layers[layer], self._cache.pool[layer]
        count = len(self._places)
        pool[0].flatten(0, 1).index_copy_(0, self._places, mixed[:count, heads::2])
        pool[1].flatten(0, 1).index_copy_(0, self._places, mixed[:count, heads + 1 :: 2])
        # The kernel counts the tokens before the own one.
        window = (-1 if rule.window_tokens is None else rule.window_tokens - 1, 0)
        kernel = self._kernel if rule.softcap is None else plain_varlen
        bent = {} if rule.softcap is None else {"softcap": rule.softcap}
        attended = mixed.new_zeros((mixed.shape[0], heads * mixed.shape[2]))
        attended[: self._queries] = kernel(
            mixed[: self._queries, :heads],
            pool[0],
            pool[1],
            self._ends,
            None,
            self._counts_max,
            self._length_max,
            scale=rule.scale,
            window_size=window,
            enable_gqa=True,
            seqused_k=self._used,
            block_table=self._table,
            num_splits=1,
            **bent,
        ).flatten(1)
        return attended


class PagedPrefillAttention(_PagedAttention):
    """As `PrefillAttention`. `rows` and `positions` are those of all tokens with the padding."""

    def __init__(
        self,
        cache: PagedCache,
        chunks: Sequence[PrefillChunk],
        rows: Sequence[int],
        positions: Sequence[int],
        rules: AttentionRules,
        kernel: Kernel,
    ) -> None:
        for chunk in chunks:
            cache.reserve(chunk.row, chunk.start + chunk.count)
        lengths = [chunk.start + chunk.count for chunk in chunks]
        super().__init__(
            cache,
            rules,
            kernel,
            rows=[chunk.row for chunk in chunks],
            counts=[chunk.count for chunk in chunks],
            length_max=max(lengths),
        )
        self._used = torch.tensor(lengths, dtype=torch.int32, device=cache.device)
        self._places = cache.places(rows, positions)

    def __call__(self, layer: int, mixed: Tensor) -> Tensor:
        return self._attend(layer, mixed)


class PagedDecodeAttention(_PagedAttention):
    """As `DecodeAttention`: rows 0..n, kept until a row needs another page."""

    def __init__(
        self, cache: PagedCache, lengths: Sequence[int], rules: AttentionRules, kernel: Kernel
    ) -> None:
        for row, length in enumerate(lengths):
            cache.reserve(row, length)
        rows = range(len(lengths))
        super().__init__(
            cache,
            rules,
            kernel,
            rows=rows,
            counts=[1] * len(lengths),
            length_max=max(len(cache.pages_of(row)) for row in rows) * PAGE_TOKENS,
        )
        self._room = [len(cache.pages_of(row)) * PAGE_TOKENS for row in rows]

    def fits(self, lengths: Sequence[int]) -> bool:
        return len(lengths) == len(self._room) and all(map(int.__le__, lengths, self._room))

    def set_positions(self, positions: Tensor) -> None:
        """Where each row's new token goes; computed on the device, as all of a step is."""
        self._set_next(positions)

    def __call__(self, layer: int, mixed: Tensor) -> Tensor:
        return self._attend(layer, mixed)


class BufferedDecodeAttention(_PagedAttention):
    """For steps that are captured: the block table is a buffer, and a row may have a whole context.
    All rows of the buffer attend, also those that no job has."""

    def __init__(
        self, cache: PagedCache, table: Tensor, rules: AttentionRules, kernel: Kernel
    ) -> None:
        rows = len(table)
        context = cache.shape.context_tokens
        super().__init__(
            cache, rules, kernel, rows=[], counts=[1] * rows, length_max=context, table=table
        )

    def fits(self, lengths: Sequence[int]) -> bool:
        return len(lengths) <= len(self._table)

    def set_positions(self, positions: Tensor) -> None:
        """As `PagedDecodeAttention.set_positions`."""
        self._set_next(positions)

    def __call__(self, layer: int, mixed: Tensor) -> Tensor:
        return self._attend(layer, mixed)
