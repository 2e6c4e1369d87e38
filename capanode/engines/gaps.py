"""How clearly the sampler would have taken a given token: the `gap` of a `TokenScore`.

The gaps of an honest answer are above zero, but for near ties that another machine rounds
otherwise.
"""

import torch
from torch import Tensor

from capanode.engines.exact_logits import ExactLogits
from capanode.engines.noise import RowNoise, gumbel, rough_gumbel
from capanode.engines.sampling import SamplingParameters, least_likely
from protocol.generation import GAP_MAX

# How many of the other tokens are compared exactly: `rough_gumbel` puts no fifth one first.
_CONTENDERS = 4


def signed_gap(
    logits: Tensor,
    token: int,
    sampling: SamplingParameters,
    *,
    index: int,
    exact: ExactLogits | None = None,
) -> float:
    """The gap of `token` among the logits [vocab] in float32, after the rules, of the answer's
    token number `index`. `exact` knows what rounding took from this one row."""
    vocab = len(logits)
    if sampling.is_greedy:
        others = logits.clone()
        others[token] = -torch.inf
        return _clipped(float(logits[token]), float(others.amax()))
    scaled = logits / sampling.temperature
    if sampling.is_filtered:
        weights = (scaled - scaled.amax()).exp_()
        scaled.masked_fill_(scaled < least_likely(scaled, weights, sampling), -torch.inf)
    noise = RowNoise([sampling.seed], [index], logits.device)
    hashes = noise.all_hashes(vocab)[0]
    rough = rough_gumbel(hashes).add_(scaled)
    rough[token] = -torch.inf
    rivals = rough.topk(min(_CONTENDERS, vocab - 1)).indices
    ids = torch.cat((rivals.new_tensor([token]), rivals))
    values = scaled[ids]
    if exact is not None:
        values = values.add_(exact.corrections(ids[None])[0].div_(sampling.temperature))
    own, *rest = [
        value + gumbel(hashed)
        for value, hashed in zip(values.tolist(), hashes[ids].tolist(), strict=True)
    ]
    return _clipped(own, max(rest))


def _clipped(own: float, best_other: float) -> float:
    if own == -torch.inf:
        return -GAP_MAX
    return min(max(own - best_other, -GAP_MAX), GAP_MAX)
