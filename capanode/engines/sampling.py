"""Choosing the next token of many rows at once, by the sampler `gumbel-1` of docs/protocol.md.

A row's token is the one with the greatest sum of scaled logit and noise (`capanode.engines.noise`)
among those that the filters leave. A row is chosen alike whatever rows are beside it.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import add, neg

import torch
from torch import Tensor
from torch.nn import functional

from capanode.engines.exact_logits import ExactLogits
from capanode.engines.noise import RowNoise, gumbel, rough_gumbel

# Reductions over a whole vocabulary go by blocks: torch's bfloat16 argmax is not vectorised, but
# its maximum is (20 us instead of 160 us a row).
_BLOCK = 128

# A draw reads the vocabulary as a table of so many rows. With fewer the bounds of its columns are
# closer, and cost more.
_COLUMN = 32
# How many columns of tokens are looked at first (one row of 30 at a temperature of 1.5 needs more),
# how many times more if that was not enough, and how many of their tokens are compared exactly.
_FIRST_COLUMNS = 48
_MORE_COLUMNS = 8
_CONTENDERS = 4
# `rough_gumbel` is closer than this.
_ROUGHNESS = 1e-3

# Filters look at this many likeliest tokens first: sorting a whole vocabulary costs 30 times as
# much.
_CANDIDATES = 64
# Where a nucleus reaches further, so many tokens are tried before the vocabulary is sorted.
_TRIED = 4

# Below it scaled logits leave what float32 holds; nothing but the likeliest token is drawn anyway.
_TEMPERATURE_MIN = 1e-5


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    temperature: float  # 0 takes the likeliest token
    top_p: float
    top_k: int  # 0 is no limit
    seed: int
    min_p: float = 0.0

    @property
    def is_greedy(self) -> bool:
        return self.temperature < _TEMPERATURE_MIN or self.top_k == 1

    @property
    def is_filtered(self) -> bool:
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0

    @property
    def width(self) -> int:
        """How many of the likeliest tokens to look at; from the row alone."""
        return max(_CANDIDATES, 1 << (self.top_k - 1).bit_length()) if self.top_k else _CANDIDATES


@dataclass(frozen=True, slots=True)
class _Batch:
    """Rows that are drawn from together."""

    logits: Tensor
    wanted: Sequence[SamplingParameters]
    indices: Sequence[int]
    exact: ExactLogits | None

    def take(self, rows: Sequence[int]) -> "_Batch":
        if len(rows) == len(self.wanted):
            return self
        return _Batch(
            self.logits[rows],
            [self.wanted[row] for row in rows],
            [self.indices[row] for row in rows],
            self.exact.take(rows) if self.exact is not None else None,
        )

    @property
    def noise(self) -> RowNoise:
        return RowNoise([row.seed for row in self.wanted], self.indices, self.logits.device)

    @property
    def temperatures(self) -> Tensor:
        return self.column([row.temperature for row in self.wanted])

    def column(self, values: Sequence[float]) -> Tensor:
        """[n, 1] in float32."""
        plain = torch.tensor(values, dtype=torch.float32, device=self.logits.device)
        return plain[:, None]


def choose_tokens(
    logits: Tensor,
    parameters: Sequence[SamplingParameters],
    indices: Sequence[int],
    exact: ExactLogits | None = None,
) -> list[int]:
    """One token for each row of `logits` [n, vocab]; `indices` count each job's output tokens.
    `exact` knows what rounding took from the logits, where it took anything."""
    groups: dict[tuple[_Choose, int], list[int]] = defaultdict(list)
    for row, wanted in enumerate(parameters):
        groups[_way_of(wanted)].append(row)
    batch = _Batch(logits, parameters, indices, exact)
    tokens: dict[int, int] = {}
    for (choose, width), rows in groups.items():
        tokens |= zip(rows, choose(batch.take(rows), width), strict=True)
    return [tokens[row] for row in range(len(parameters))]


def _way_of(wanted: SamplingParameters) -> "tuple[_Choose, int]":
    if wanted.is_greedy:
        return _choose_likeliest, 0
    if wanted.is_filtered:
        return _choose_filtered, wanted.width
    return _choose_unfiltered, _FIRST_COLUMNS


def _choose_likeliest(batch: _Batch, _: int) -> list[int]:
    """argmax over the last dimension, the first of equals."""
    logits = batch.logits
    count, vocab = logits.shape
    if vocab % _BLOCK:
        return _ints(logits.float().argmax(-1))
    blocks = logits.view(count, -1, _BLOCK)
    block = blocks.amax(-1).float().argmax(-1)
    inside = blocks[torch.arange(count, device=logits.device), block].float().argmax(-1)
    return _ints(block * _BLOCK + inside)


def _choose_unfiltered(batch: _Batch, columns: int) -> list[int]:
    """The vocabulary is read as a table of `_COLUMN` rows, whose columns have at most the sum of
    their greatest logit and their greatest noise: only the tokens of the best ones are looked at,
    and if another column could still hold the best token, of more of them."""
    noise, temperatures, logits = batch.noise, batch.temperatures, batch.logits
    count, vocab = logits.shape
    if vocab % _COLUMN:
        logits = functional.pad(logits, (0, -vocab % _COLUMN), value=-torch.inf)
    table = logits.view(count, _COLUMN, -1)
    every = table.shape[2]
    bounds = rough_gumbel(noise.column_minima(logits.shape[1], _COLUMN))
    bounds.add_(table.amax(1).float().div_(temperatures))
    columns = min(columns, every)
    best = bounds.topk(min(columns + 1, every))
    places = torch.arange(0, logits.shape[1], every, device=logits.device)[:, None]
    ids = (best.indices[:, None, :columns] + places).view(count, -1)
    scaled = logits.gather(1, ids).float().div_(temperatures)
    tokens, sums = _greatest_sums(batch, ids, scaled, noise.hashes(ids, logits.shape[1]))
    if columns < every:
        unseen = _floats(best.values[:, columns])
        open_rows = [row for row in range(count) if unseen[row] >= sums[row] - _ROUGHNESS]
        if open_rows:
            more = _choose_unfiltered(batch.take(open_rows), _MORE_COLUMNS * columns)
            for row, token in zip(open_rows, more, strict=True):
                tokens[row] = token
    return tokens


def _greatest_sums(
    batch: _Batch, ids: Tensor, scaled: Tensor, hashes: Tensor
) -> tuple[list[int], list[float]]:
    """Each row's token with the greatest sum of `scaled` and noise, the least of equals, and the
    greatest sum by rounded logits. All are [n, k]; tokens that may not be chosen have −inf."""
    sums = rough_gumbel(hashes).add_(scaled).topk(min(_CONTENDERS, ids.shape[1]))
    best = sums.indices
    ids, scaled, hashes = ids.gather(1, best), scaled.gather(1, best), hashes.gather(1, best)
    if batch.exact is not None:
        inside = ids.clamp(max=batch.logits.shape[1] - 1)
        scaled = scaled.add_(batch.exact.corrections(inside).div_(batch.temperatures))
    chosen = [
        max(zip(map(add, logits, map(gumbel, noises)), map(neg, tokens), strict=True))
        for tokens, logits, noises in zip(
            ids.tolist(), scaled.tolist(), hashes.tolist(), strict=True
        )
    ]
    return [-token for _, token in chosen], _floats(sums.values[:, 0])


def _choose_filtered(batch: _Batch, width: int) -> list[int]:
    """Among each row's `width` likeliest tokens; `_choose_wide` where its filters leave more."""
    temperatures, logits, wanted = batch.temperatures, batch.logits, batch.wanted
    vocab, device = logits.shape[1], logits.device
    width = min(width, vocab)
    values, ids = logits.topk(width)
    scaled = values.float().div_(temperatures)
    top = scaled[:, :1]
    weights = (scaled - top).exp_()
    limits = torch.tensor([[row.top_k or vocab] for row in wanted], device=device)
    last = limits.clamp(max=width) - 1
    least = scaled.gather(1, last).masked_fill_(limits >= vocab, -torch.inf)
    weights.masked_fill_(scaled < least, 0)
    ends = weights.cumsum(-1)
    total = ends[:, -1:]
    if any(row.top_p < 1 and not row.top_k for row in wanted):
        # A copy also of float32: the logits are the caller's.
        everything = logits.to(torch.float32, copy=True).div_(temperatures).sub_(top).exp_()
        total = torch.where(limits < vocab, total, everything.sum(-1, keepdim=True))
    # The last token with too little before it, and its equals, are the least likely that stay.
    shares = batch.column([row.top_p for row in wanted])
    edge = ((ends - weights) < shares * total).sum(-1, keepdim=True).sub_(1).clamp_(min=0)
    least = torch.where(shares < 1, torch.maximum(least, scaled.gather(1, edge)), least)
    minimum = top + batch.column([row.min_p for row in wanted]).log_()
    least = torch.maximum(least, minimum)
    left = scaled.masked_fill(scaled < least, -torch.inf)
    found, _ = _greatest_sums(batch, ids, left, batch.noise.hashes(ids, vocab))
    if width < vocab:
        for row, (is_wide,) in enumerate((scaled[:, -1:] >= least).tolist()):
            if is_wide:
                found[row] = _choose_wide(batch.take([row]))
    return found


def _choose_wide(batch: _Batch) -> int:
    """One row whose filters leave more than its candidates.

    The tokens with the greatest sums are tried in order: the first that passes is the greatest of
    those that pass, and most do. Only if none of them does is the vocabulary sorted.
    """
    (wanted,) = batch.wanted
    vocab, device = batch.logits.shape[1], batch.logits.device
    scaled = batch.logits.float() / batch.temperatures
    weights = (scaled - scaled.amax()).exp_()
    hashes = batch.noise.all_hashes(vocab)
    if not wanted.top_k:
        total, tried = weights.sum(), rough_gumbel(hashes).add_(scaled).topk(_TRIED).indices
        minimum = scaled.amax() + scaled.new_tensor(wanted.min_p).log()
        own = scaled.gather(1, tried)
        likelier = torch.stack([weights.masked_fill(scaled <= one, 0).sum() for one in own[0]])
        passes = (likelier < wanted.top_p * total) & (own >= minimum)
        if bool(passes.any()):
            left = own.masked_fill(~passes, -torch.inf)
            return _greatest_sums(batch, tried, left, hashes.gather(1, tried))[0][0]
    least = least_likely(scaled[0], weights[0], wanted)
    left = scaled.masked_fill(scaled < least, -torch.inf)
    ids = torch.arange(vocab, device=device)[None]
    return _greatest_sums(batch, ids, left, hashes)[0][0]


def least_likely(scaled: Tensor, weights: Tensor, wanted: SamplingParameters) -> Tensor:
    """The scaled logit that a token needs to pass the filters."""
    order = scaled.sort(descending=True)
    least = scaled.new_tensor(-torch.inf)
    if 0 < wanted.top_k < len(scaled):
        least = order.values[wanted.top_k - 1]
    ends = weights[order.indices].masked_fill_(order.values < least, 0).cumsum(-1)
    if wanted.top_p < 1:
        before = functional.pad(ends, (1, 0))[:-1]
        edge = (before < wanted.top_p * ends[-1]).sum() - 1
        least = torch.maximum(least, order.values[edge.clamp(min=0)])
    if wanted.min_p > 0:
        least = torch.maximum(least, order.values[0] + scaled.new_tensor(wanted.min_p).log())
    return least


def _floats(tensor: Tensor) -> list[float]:
    values: list[float] = tensor.tolist()
    return values


def _ints(tensor: Tensor) -> list[int]:
    values: list[int] = tensor.tolist()
    return values


_Choose = Callable[[_Batch, int], list[int]]
