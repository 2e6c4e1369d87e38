"""The sampler `gumbel-1` without a look from the host, for steps that run ahead of it on a GPU.

It draws what `sampling` draws, for jobs that are greedy or without filters: those need no sorting.
"""

import torch
from torch import Tensor

from capanode.engines.exact_logits import ExactLogits
from capanode.engines.noise import RowNoise, rough_gumbel

# As many tokens are compared exactly as `sampling` compares.
_CONTENDERS = 4


def draw(
    logits: Tensor, exact: ExactLogits | None, temperatures: Tensor, noise: RowNoise
) -> Tensor:
    """One token for each row of `logits` [n, vocab]; `temperatures` are [n, 1], 0 is greedy."""
    vocab = logits.shape[1]
    plain = logits.float()
    divisor = torch.where(temperatures > 0, temperatures, 1.0)
    scaled = plain / divisor
    hashes = noise.all_hashes(vocab)
    ids = rough_gumbel(hashes).add_(scaled).topk(min(_CONTENDERS, vocab)).indices
    own = scaled.gather(1, ids)
    if exact is not None:
        own = own + exact.corrections(ids) / divisor
    sums = own.double() + _gumbel(hashes.gather(1, ids))
    drawn = ids.gather(1, sums.argmax(1, keepdim=True))
    likeliest = plain.argmax(1, keepdim=True)
    return torch.where(temperatures > 0, drawn, likeliest)[:, 0]


def _gumbel(hashes: Tensor) -> Tensor:
    """`noise.gumbel` in float64."""
    shares = (hashes.double() + (2.0**31 + 0.5)) * 2.0**-32
    return shares.neg_().log1p_().neg_().log_().neg_()
