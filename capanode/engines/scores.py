"""How likely tokens were: their logarithms of probability, ranks and alternatives, as they travel.

Scores are of the model itself, before penalties, temperature and filters.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from capanode.engines.detokenize import TokenBytes
from protocol.codec import encode
from protocol.generation import Alternative, TokenScore, TokenScores
from protocol.limits import KIB, OUTPUT_BYTES_MAX

# Encoded, with a piece of ordinary length; longer pieces are rare.
_SCORE_BYTES = 96
_ALTERNATIVE_BYTES = 72
# Far below a frame.
_BLOCK_BYTES = 48 * KIB


def scores_max(alternatives: int) -> int:
    """How many tokens of one job may be scored with so many alternatives each."""
    return OUTPUT_BYTES_MAX // (_SCORE_BYTES + alternatives * _ALTERNATIVE_BYTES)


def score_tokens(
    logits: Tensor, tokens: Sequence[int], alternatives: int, pieces: TokenBytes
) -> list[TokenScore]:
    """The scores of one token for each row of `logits` [n, vocab]."""
    values = logits.float()
    own = values.gather(1, torch.tensor(tokens, device=logits.device)[:, None])
    total = values.logsumexp(-1, keepdim=True)
    ranks = (values > own).sum(-1).tolist()
    logprobs = (own - total)[:, 0].tolist()
    best: list[list[tuple[int, float]]] = [[] for _ in tokens]
    if alternatives:
        top = values.topk(min(alternatives, values.shape[1]))
        likeliest = (top.values - total).tolist()
        pairs = zip(top.indices.tolist(), likeliest, strict=True)
        best = [list(zip(*row, strict=True)) for row in pairs]
    return [
        TokenScore(
            token,
            pieces.spelled(token),
            logprob,
            rank,
            tuple(Alternative(other, pieces.spelled(other), value) for other, value in row),
        )
        for token, logprob, rank, row in zip(tokens, logprobs, ranks, best, strict=True)
    ]


def prompt_blocks(scores: Sequence[TokenScore], alternatives: int) -> Iterator[bytes]:
    """The scores of a prompt's next tokens, in blocks that fit a chunk."""
    size = max(1, _BLOCK_BYTES // (_SCORE_BYTES + alternatives * _ALTERNATIVE_BYTES))
    for start in range(0, len(scores), size):
        yield encode(TokenScores(tuple(scores[start : start + size]), is_prompt=True))
