"""Choosing the next token of many rows at once.

Randomness has no state: the draw for a job's n-th output token is a hash of (seed, n). A job so
samples the same tokens in every batch, and an answer that is continued elsewhere goes on
with the draws that it would have had.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# Reductions over a whole vocabulary go by blocks: torch's bfloat16 argmax is not vectorised, but
# its maximum is (20 us instead of 160 us a row).
_BLOCK = 128

# Truncated sampling looks at this many likeliest tokens first. A nucleus that reaches further is
# drawn from by rejection: sorting a whole vocabulary costs 30 times as much.
_CANDIDATES = 64
_REJECTIONS_MAX = 16


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    temperature: float  # 0 takes the likeliest token
    top_p: float
    top_k: int  # 0 is no limit
    seed: int

    @property
    def is_greedy(self) -> bool:
        return self.temperature == 0 or self.top_k == 1

    @property
    def is_truncated(self) -> bool:
        return self.top_p < 1 or self.top_k > 0


def uniform_draw(seed: int, index: int, attempt: int = 0) -> float:
    """A number in [0, 1) that depends on nothing but a job's seed and the token's index."""
    text = b"".join(number.to_bytes(8, "big") for number in (seed, index, attempt))
    return (int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 11) * 2.0**-53


def choose_tokens(
    logits: Tensor, parameters: Sequence[SamplingParameters], indices: Sequence[int]
) -> list[int]:
    """One token for each row of `logits` [n, vocab]; `indices` count each job's output tokens."""
    greedy = [row for row, wanted in enumerate(parameters) if wanted.is_greedy]
    if len(greedy) == len(parameters):
        return _ints(_likeliest(logits))
    drawn = [row for row, wanted in enumerate(parameters) if not wanted.is_greedy]
    truncated = [row for row in drawn if parameters[row].is_truncated]
    whole = [row for row in drawn if not parameters[row].is_truncated]
    tokens = dict(zip(greedy, _ints(_likeliest(logits[greedy])), strict=True)) if greedy else {}
    for rows, choose in ((truncated, _draw_truncated), (whole, _draw_whole)):
        if rows:
            wanted = [parameters[row] for row in rows]
            chosen = logits if len(rows) == len(parameters) else logits[rows]
            drawn_tokens = choose(_weights(chosen, wanted), wanted, [indices[row] for row in rows])
            tokens |= zip(rows, drawn_tokens, strict=True)
    return [tokens[row] for row in range(len(parameters))]


def _likeliest(logits: Tensor) -> Tensor:
    """argmax over the last dimension, the first of equals."""
    count, vocab = logits.shape
    if vocab % _BLOCK:
        return logits.float().argmax(-1)
    blocks = logits.view(count, -1, _BLOCK)
    block = blocks.amax(-1).float().argmax(-1)
    inside = blocks[torch.arange(count, device=logits.device), block].float().argmax(-1)
    return block * _BLOCK + inside


def _weights(logits: Tensor, wanted: Sequence[SamplingParameters]) -> Tensor:
    """Probabilities up to a factor, float32; the likeliest token has 1."""
    temperatures = torch.tensor([[row.temperature] for row in wanted], device=logits.device)
    shifted = logits.float().sub_(logits.amax(-1, keepdim=True))
    return shifted.div_(temperatures).exp_()


def _draw_truncated(
    weights: Tensor, wanted: Sequence[SamplingParameters], indices: Sequence[int]
) -> list[int]:
    """Draw from the `top_k` likeliest tokens, and of those from the nucleus with mass `top_p`."""
    tokens: dict[int, int] = {}
    narrow = [row for row, one in enumerate(wanted) if one.top_k <= _CANDIDATES]
    wide = [row for row, one in enumerate(wanted) if one.top_k > _CANDIDATES]
    for rows, width in (
        (narrow, _CANDIDATES),
        (wide, max((wanted[row].top_k for row in wide), default=0)),
    ):
        if rows:
            chosen = weights if len(rows) == len(wanted) else weights[rows]
            found = _draw_candidates(
                chosen, [wanted[row] for row in rows], [indices[row] for row in rows], width
            )
            tokens |= {
                row: token for row, token in zip(rows, found, strict=True) if token is not None
            }
    rest = [row for row in narrow if row not in tokens]
    if rest:
        nuclei = [wanted[row] for row in rest], [indices[row] for row in rest]
        tokens |= zip(rest, _draw_nucleus(weights[rest], *nuclei), strict=True)
    return [tokens[row] for row in range(len(wanted))]


def _draw_candidates(
    weights: Tensor, wanted: Sequence[SamplingParameters], indices: Sequence[int], width: int
) -> list[int | None]:
    """Draw among each row's `width` likeliest tokens; None where its nucleus reaches further."""
    vocab, device = weights.shape[1], weights.device
    width = min(width, vocab)
    values, ids = weights.topk(width)
    limits = torch.tensor([[row.top_k or vocab] for row in wanted], device=device)
    values.masked_fill_(torch.arange(width, device=device) >= limits, 0)
    ends = values.cumsum(-1)
    # With a top_k the nucleus is a share of those k's mass; without, of everything.
    is_limited = limits < vocab
    total = torch.where(is_limited, ends[:, -1:], weights.sum(-1, keepdim=True))
    nucleus = total * torch.tensor([[row.top_p] for row in wanted], device=device)
    reaches = is_limited | (ends[:, -1:] >= nucleus) | (width == vocab)
    values.masked_fill_(ends - values >= nucleus, 0)
    ends = values.double().cumsum(-1)
    draws = _draws(wanted, indices, 0, device)
    tokens = ids.gather(1, _first_above(ends, draws * ends[:, -1:]))
    return [
        token if is_found else None
        for token, is_found in zip(_ints(tokens[:, 0]), _ints(reaches[:, 0]), strict=True)
    ]


def _draw_nucleus(
    weights: Tensor, wanted: Sequence[SamplingParameters], indices: Sequence[int]
) -> list[int]:
    """Draw from the whole distribution until the token lies in the nucleus, that is until less than
    `top_p` of the mass is likelier than it. One draw succeeds with probability `top_p` or more."""
    tokens: dict[int, int] = {}
    bounds = weights.sum(-1) * torch.tensor([row.top_p for row in wanted], device=weights.device)
    rows = list(range(len(wanted)))
    for attempt in range(1, _REJECTIONS_MAX + 1):
        chosen = weights[rows]
        drawn = _draw_whole(
            chosen, [wanted[row] for row in rows], [indices[row] for row in rows], attempt
        )
        own = chosen.gather(1, torch.tensor(drawn, device=weights.device)[:, None])
        likelier = chosen.masked_fill_(chosen <= own, 0).sum(-1)
        accepted = _ints(likelier < bounds[rows])
        tokens |= {row: token for row, token, ok in zip(rows, drawn, accepted, strict=True) if ok}
        rows = [row for row, ok in zip(rows, accepted, strict=True) if not ok]
        if not rows:
            return [tokens[row] for row in range(len(wanted))]
    last = [wanted[row] for row in rows], [indices[row] for row in rows]
    found = _draw_candidates(weights[rows], *last, weights.shape[1])
    tokens |= {row: token for row, token in zip(rows, found, strict=True) if token is not None}
    return [tokens[row] for row in range(len(wanted))]


def _draw_whole(
    weights: Tensor,
    wanted: Sequence[SamplingParameters],
    indices: Sequence[int],
    attempt: int = 0,
) -> list[int]:
    """Draw from the whole distribution: find the block of tokens, then the token in it."""
    count, device = len(wanted), weights.device
    if weights.shape[1] % _BLOCK:
        weights = functional.pad(weights, (0, -weights.shape[1] % _BLOCK))
    blocks = weights.view(count, -1, _BLOCK)
    ends = blocks.sum(-1).double().cumsum(-1)
    target = _draws(wanted, indices, attempt, device) * ends[:, -1:]
    block = _first_above(ends, target)
    inside = blocks[torch.arange(count, device=device), block[:, 0]].double().cumsum(-1)
    before = functional.pad(ends, (1, 0)).gather(1, block)
    return _ints((block * _BLOCK + _first_above(inside, target - before))[:, 0])


def _first_above(ends: Tensor, target: Tensor) -> Tensor:
    """Where the cumulative weights `ends` first exceed `target`, both [n, ...] in float64.

    Rounding may put the target past all weight: then it is the last place that has any.
    """
    place = torch.searchsorted(ends, target, right=True)
    return torch.minimum(place, (ends < ends[:, -1:]).sum(-1, keepdim=True))


def _draws(
    wanted: Sequence[SamplingParameters], indices: Sequence[int], attempt: int, device: torch.device
) -> Tensor:
    draws = [
        [uniform_draw(row.seed, index, attempt)] for row, index in zip(wanted, indices, strict=True)
    ]
    return torch.tensor(draws, dtype=torch.float64, device=device)


def _ints(tensor: Tensor) -> list[int]:
    values: list[int] = tensor.tolist()
    return values
