"""Texts of unlike lengths in one pass: products see their tokens without padding, attention sees
texts of similar length side by side.

Most of the work is in products, which treat every token alike, so padding would cost them its whole
share. Attention needs a rectangle; it gets one for each group of texts whose padding is small.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from capanode.engines.linear import padded_many_rows

# A group may be padded by a tenth: more groups would cost more calls than they save.
_PADDING_SHARE_MAX = 0.1

# Rows of scores that a window's mask spans at once; a longer text is taken in blocks.
_BLOCK_TOKENS = 256


@dataclass(frozen=True, slots=True)
class TokenizedText:
    """What a tokenizer made of a text or of a pair; `types` says which of a pair a token is of, and
    is empty where all are of the first."""

    ids: list[int]
    types: list[int]

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class _Group:
    """Texts `count` by `longest` tokens at most, whose rows begin at `start` and end before `end`.
    `gather` makes a rectangle of the rows and `scatter` rows of the rectangle again; both are None,
    as is `mask`, where no text is shorter than another."""

    start: int
    end: int
    count: int
    longest: int
    gather: Tensor | None
    scatter: Tensor | None
    mask: Tensor | None  # [count, 1, 1, longest], true where there is a token


class TextBatch:
    """The layout of one pass over `texts`, which are in order of their lengths.

    `tokens`, `types` and `positions` (of a token in its text, from 0) are [rows]. The last rows are
    filler, so that few different numbers of rows occur: a kernel is compiled for each.
    """

    def __init__(self, texts: Sequence[TokenizedText], device: torch.device) -> None:
        self.lengths = torch.tensor([len(text) for text in texts], device=device)
        self.count = sum(map(len, texts))
        self.rows = padded_many_rows(self.count)
        filler = [0] * (self.rows - self.count)
        self.tokens = torch.tensor([i for t in texts for i in t.ids] + filler, device=device)
        self.positions = torch.tensor(
            [place for text in texts for place in range(len(text))] + filler, device=device
        )
        has_types = any(text.types for text in texts)
        kinds = [kind for text in texts for kind in text.types or [0] * len(text)] + filler
        self.types = torch.tensor(kinds, device=device) if has_types else None
        self._groups = _groups([len(text) for text in texts], device)

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        *,
        window_tokens: int | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """What each token takes from the others of its text, [rows, heads · width]. `query`, `key`
        and `value` are [rows, heads, width], the latter two maybe of fewer heads. With a window, a
        token sees as many on either side."""
        merged = query.new_zeros((self.rows, query.shape[1] * query.shape[2]))
        for group in self._groups:
            q, k, v = (_rectangle(part, group) for part in (query, key, value))
            if window_tokens is not None:
                attended = _within_window(q, k, v, group.mask, window_tokens)
            else:
                # Padding stands last, so that a token that sees only those before never sees it.
                attended = functional.scaled_dot_product_attention(
                    q,
                    k,
                    v,
                    attn_mask=None if is_causal else group.mask,
                    is_causal=is_causal,
                    enable_gqa=key.shape[1] != query.shape[1],
                )
            flat = attended.transpose(1, 2).reshape(group.count * group.longest, -1)
            rows = flat if group.scatter is None else flat.index_select(0, group.scatter)
            merged[group.start : group.end] = rows
        return merged


def _rectangle(part: Tensor, group: _Group) -> Tensor:
    """[rows, heads, width] as [texts, heads, longest, width]."""
    if group.gather is None:
        rows = part[group.start : group.end]
    else:
        rows = part.index_select(0, group.gather)
    return rows.view(group.count, group.longest, *part.shape[1:]).transpose(1, 2)


def _within_window(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, window: int
) -> Tensor:
    """By blocks of queries, each with the keys that it can see."""
    length = query.shape[2]
    places = torch.arange(length, device=query.device)
    blocks = []
    for start in range(0, length, _BLOCK_TOKENS):
        end = min(start + _BLOCK_TOKENS, length)
        first, last = max(0, start - window), min(length, end + window)
        visible = (places[start:end, None] - places[None, first:last]).abs() <= window
        if mask is not None:
            # A row of padding sees itself, or it would divide by nothing.
            itself = places[start:end, None] == places[None, first:last]
            visible = (visible & mask[..., first:last]) | itself
        blocks.append(
            functional.scaled_dot_product_attention(
                query[:, :, start:end],
                key[:, :, first:last],
                value[:, :, first:last],
                attn_mask=visible,
                enable_gqa=key.shape[1] != query.shape[1],
            )
        )
    return torch.cat(blocks, 2) if len(blocks) > 1 else blocks[0]


def _groups(lengths: Sequence[int], device: torch.device) -> list[_Group]:
    groups = []
    first = start = 0
    while first < len(lengths):
        last, size = first, 0
        while last < len(lengths) and _is_similar(lengths[last], last + 1 - first, size):
            size += lengths[last]
            last += 1
        groups.append(_group(lengths[first:last], start, device))
        first, start = last, start + size
    return groups


def _is_similar(length: int, count: int, size: int) -> bool:
    """True if a group of `size` tokens may take a text of `length`, its longest so far."""
    return size + length >= (1 - _PADDING_SHARE_MAX) * count * length


def _group(lengths: Sequence[int], start: int, device: torch.device) -> _Group:
    count, longest, size = len(lengths), lengths[-1], sum(lengths)
    if lengths[0] == longest:
        return _Group(start, start + size, count, longest, None, None, None)
    ends = torch.tensor(lengths, device=device).cumsum(0)
    begins = ends - torch.tensor(lengths, device=device)
    places = torch.arange(longest, device=device)
    is_token = begins[:, None] + places < ends[:, None]
    # Padding repeats the first token of its text: it is masked, and never read again.
    gather = start + torch.where(is_token, begins[:, None] + places, begins[:, None])
    return _Group(
        start,
        start + size,
        count,
        longest,
        gather.flatten(),
        is_token.flatten().nonzero()[:, 0],
        is_token[:, None, None],
    )
