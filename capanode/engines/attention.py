"""Attention over the cache: rows with one new token each, or whole chunks of prompts.

Both write their new keys and values first and then read the cache in place, with torch's fused
kernel. It sums a row's keys in blocks from the first one on, so a row comes out bit for bit the
same whatever rows are beside it and however far its padding reaches (measured, torch 2.13). For
decoding, query heads that share a key head are the kernel's queries. To copy keys and values to
float32 and multiply them in two batches is as fast for short rows, but took 1.7 times as long for
32 rows of 512 tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional

from capanode.engines.attention_rules import AttentionRules, LayerRule
from capanode.engines.kv_cache import KvCache

# Decode reads every row up to a multiple of this: the views hold for that many steps, and a row's
# sums come out bit for bit the same whatever the longest row beside it is.
LENGTH_STEP = 32

# What one more call of the kernels costs per layer, in tokens read: 20 us on one thread and up to
# 100 us where others must be woken, at 0.15 us a token.
_CALL_COST_TOKENS = 512


class Attention(Protocol):
    """What a layer needs: `mixed` is [tokens, heads + 2 * kv_heads, head_dim], already rotated."""

    def __call__(self, layer: int, mixed: Tensor) -> Tensor:
        """Store the new keys and values, and return [tokens, heads * head_dim]."""
        ...


class NextAttention(Attention, Protocol):
    """For one new token in each of rows 0..n; kept from step to step while it `fits`."""

    def fits(self, lengths: Sequence[int]) -> bool:
        """True if the same number of rows, now of these lengths, can still be served."""
        ...

    def set_positions(self, positions: Tensor) -> None:
        """Where each row's new token goes; call before each step."""
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


def _shift(segment: Segment, rows: int) -> Segment:
    return Segment(range(segment.rows.start + rows, segment.rows.stop + rows), segment.length)


class _SegmentBatch:
    """One segment's views of the cache and its mask. Its rows `read` as many rows of the cache, or
    all of them one."""

    def __init__(
        self, cache: KvCache, segment: Segment, rules: AttentionRules, *, read: range
    ) -> None:
        shape, count = cache.shape, len(segment.rows)
        self.rows, self.length = segment.rows, segment.length
        self._rules = rules.layers
        self._query_sizes = (count, shape.kv_heads, -1, shape.head_dim)
        sizes = (count, shape.kv_heads, 2, segment.length, shape.head_dim)
        self._views = [
            cache.keys_values(layer, read, segment.length).view(len(read), *sizes[1:]).expand(sizes)
            for layer in range(shape.layers)
        ]
        self._positions = torch.arange(segment.length, device=cache.device)
        self._masks = {
            window: cache.layers[0].new_empty((count, 1, 1, segment.length))
            for window in rules.windows
        }

    def set_positions(self, positions: Tensor) -> None:
        """Show each row the keys up to and including its own position, as far back as it sees."""
        own = positions[self.rows.start : self.rows.stop, None]
        for window, mask in self._masks.items():
            hidden = self._positions > own
            if window is not None:
                hidden |= self._positions <= own - window
            mask.zero_().masked_fill_(hidden[:, None, None], -torch.inf)

    def __call__(self, layer: int, queries: Tensor) -> Tensor:
        """`queries` is [rows, heads, head_dim]; the result is [rows, heads * head_dim]."""
        keys, values = self._views[layer].unbind(2)
        rule = self._rules[layer]
        mask = self._masks[rule.window_tokens]
        attended = _attend(queries.view(self._query_sizes), keys, values, mask, rule)
        return attended.reshape(len(queries), -1)


@dataclass(frozen=True, slots=True)
class _Span:
    """Neighbouring tokens of a pass, each of which is the next one of a row of the cache, or all of
    which go to one row."""

    tokens: range
    rows: range

    def read_by(self, segment: Segment) -> range:
        if len(self.rows) < len(self.tokens):
            return self.rows
        shift = self.rows.start - self.tokens.start
        return range(segment.rows.start + shift, segment.rows.stop + shift)


def _plan_spans(first_row: int, counts: Sequence[int]) -> list[_Span]:
    """For `counts` new tokens in the rows from the first one on."""
    spans: list[_Span] = []
    end = 0
    for row, count in enumerate(counts, first_row):
        start, end = end, end + count
        last = spans[-1] if spans else None
        if count == 1 and last is not None and len(last.rows) == len(last.tokens):
            spans[-1] = _Span(range(last.tokens.start, end), range(last.rows.start, row + 1))
        else:
            spans.append(_Span(range(start, end), range(row, row + 1)))
    return spans


class _RowsAttention:
    """New tokens of rows of the cache, each at a position of its own."""

    def __init__(
        self,
        cache: KvCache,
        lengths: Sequence[int],
        rules: AttentionRules,
        *,
        counts: Sequence[int],
        first_row: int = 0,
    ) -> None:
        """From the first row on, each has `counts` new tokens; with the first of them it has one of
        `lengths`."""
        self._cache = cache
        self._heads = rules.heads
        own = [
            length + more
            for length, count in zip(lengths, counts, strict=True)
            for more in range(count)
        ]
        planned = [
            (_shift(segment, span.tokens.start), span)
            for span in _plan_spans(first_row, counts)
            for segment in plan_segments(own[span.tokens.start : span.tokens.stop])
        ]
        self._batches = [
            _SegmentBatch(cache, segment, rules, read=span.read_by(segment))
            for segment, span in planned
        ]
        rows = [row for row, count in enumerate(counts, first_row) for _ in range(count)]
        self._rows = torch.tensor(rows, device=cache.device)
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

    def __init__(self, cache: KvCache, lengths: Sequence[int], rules: AttentionRules) -> None:
        super().__init__(cache, lengths, rules, counts=[1] * len(lengths))

    def fits(self, lengths: Sequence[int]) -> bool:
        """True if the same number of rows, now of these lengths, can still be served."""
        return len(lengths) == len(self._rows) and all(
            lengths[row] <= batch.length for batch in self._batches for row in batch.rows
        )


class ReplayAttention(_RowsAttention):
    """Tokens of one job that were decoded before, taken in at once as if each were decoded: the
    same kernels see the same numbers, so the cache comes out alike."""

    def __init__(self, cache: KvCache, chunk: "PrefillChunk", rules: AttentionRules) -> None:
        super().__init__(cache, [chunk.start + 1], rules, counts=[chunk.count], first_row=chunk.row)


class DraftAttention(_RowsAttention):
    """The next token of each of rows 0..n, with the tokens that are drafted to follow it, as if
    each were decoded in a step of its own."""

    def __init__(
        self,
        cache: KvCache,
        lengths: Sequence[int],
        rules: AttentionRules,
        *,
        counts: Sequence[int],
    ) -> None:
        """`lengths` are those without the drafts, `counts` how many tokens each row gets."""
        super().__init__(cache, lengths, rules, counts=counts)


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
        rules: AttentionRules,
    ) -> None:
        self._cache = cache
        self._rules = rules
        self._chunks = chunks
        self._rows, self._positions = rows, positions
        self._masks = {
            window: [_causal_mask(chunk, cache, window) for chunk in chunks]
            for window in rules.windows
        }

    def __call__(self, layer: int, mixed: Tensor) -> Tensor:
        heads, shape = self._rules.heads, self._cache.shape
        rule = self._rules.layers[layer]
        torch.ops.aten.index_put_(
            self._cache.layers[layer], [self._rows, None, self._positions], mixed[:, heads:]
        )
        attended = mixed.new_zeros((mixed.shape[0], heads * shape.head_dim))
        offset = 0
        for chunk, mask in zip(self._chunks, self._masks[rule.window_tokens], strict=True):
            end = offset + chunk.count
            queries = mixed[offset:end, :heads].view(
                chunk.count, shape.kv_heads, heads // shape.kv_heads, shape.head_dim
            )
            keys, values = self._cache.keys_values(
                layer, range(chunk.row, chunk.row + 1), chunk.start + chunk.count
            ).unbind(1)
            # Key heads are the kernel's batch here, and those that share one its heads: so keys are
            # broadcast by stride and not copied.
            mixed_values = _attend(
                queries.permute(1, 2, 0, 3), keys[:, None], values[:, None], mask, rule
            )
            attended[offset:end] = mixed_values.permute(2, 0, 1, 3).reshape(chunk.count, -1)
            offset = end
        return attended


def _attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, rule: LayerRule
) -> Tensor:
    """`queries` and the result are [batch, heads, count, dim], keys and values [batch, heads or 1,
    length, dim]; no mask means that the last of `count` tokens sees all, the one before it one
    less, and so on from the first."""
    heads = (-1, queries.shape[1], -1, -1)
    keys, values = keys.expand(heads), values.expand(heads)
    if rule.softcap is not None:
        return _attend_bent(queries, keys, values, mask, rule)
    return functional.scaled_dot_product_attention(
        queries, keys, values, attn_mask=mask, is_causal=mask is None, scale=rule.scale
    )


def _attend_bent(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, rule: LayerRule
) -> Tensor:
    """No fused kernel bends scores: they are made whole, in float32 as the kernel's are. In one
    flat batch, whose products come out alike for any number of rows."""
    assert rule.softcap is not None
    wide, long, deep = (part.float().flatten(0, 1) for part in (queries, keys, values))
    scores = _capped(torch.bmm(wide, long.transpose(1, 2)).mul_(rule.scale), rule.softcap)
    scores = scores.view(*queries.shape[:3], -1)
    if mask is None:
        mask = _hidden(queries.shape[2], 0, None, scores)
    weights = torch.softmax(scores.add_(mask), -1).flatten(0, 1)
    return torch.bmm(weights, deep).view(queries.shape).to(queries.dtype)


def _capped(scores: Tensor, softcap: float) -> Tensor:
    """Scores bent towards ±softcap, in place (Gemma 2)."""
    return scores.div_(softcap).tanh_().mul_(softcap)


def _causal_mask(chunk: PrefillChunk, cache: KvCache, window: int | None) -> Tensor | None:
    """None where the kernel masks by itself: in the first chunk of a prompt, if no token of it is
    out of another's sight."""
    length = chunk.start + chunk.count
    if window is not None and window >= length:
        window = None
    if chunk.start == 0 and window is None:
        return None
    return _hidden(chunk.count, chunk.start, window, cache.layers[0])


def _hidden(count: int, start: int, window: int | None, like: Tensor) -> Tensor:
    """What `count` tokens from position `start` on must not see is -inf: [count, start + count]."""
    future = like.new_full((count, start + count), -torch.inf).triu_(start + 1)
    if window is None:
        return future
    return torch.full_like(future, -torch.inf).tril_(start - window).add_(future)
