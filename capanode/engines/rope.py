"""Rotary position embeddings: the tables by which queries and keys are rotated.

A head's channels are kept in an order in which each one is rotated with the one half a head away.
So a rotation is `x * cos + roll(x, half) * sin` whatever share of the head it covers: channels that
are not rotated have a cosine of 1 and a sine of 0.
"""

import math

import torch
from torch import Tensor

from capanode.engines.decoder_config import LinearScaling, Llama3Scaling, LongScaling, Rope


def rotated_order(head_dim: int, channels: int) -> Tensor:
    """Where each channel of a head is found in the model's files, [head_dim]. There the first
    `channels` are rotated, each with the one half of `channels` away."""
    order = torch.arange(head_dim)
    rotated, still = order[:channels].view(2, -1), order[channels:].view(2, -1)
    return torch.cat((rotated, still), 1).flatten()


def rope_tables(
    rope: Rope, head_dim: int, context_tokens: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and signed sines, [context, 2, head_dim]: plane 0 rotates, plane 1 leaves as it is.

    With the sign in the sines, rotating is `x * cos + roll(x, half) * sin`.
    """
    frequencies = rope_frequencies(rope, context_tokens)
    angles = torch.arange(context_tokens).float()[:, None] * frequencies
    cosines, sines = angles.cos(), angles.sin()
    if isinstance(rope.scaling, LongScaling):
        cosines *= rope.scaling.attention_factor
        sines *= rope.scaling.attention_factor
    still_shape = (context_tokens, head_dim // 2 - rope.channels // 2)
    cosines = torch.cat((cosines, torch.ones(still_shape)), 1)
    sines = torch.cat((sines, torch.zeros(still_shape)), 1)
    rotating = torch.cat((cosines, cosines), 1), torch.cat((-sines, sines), 1)
    still = torch.ones_like(rotating[0]), torch.zeros_like(rotating[1])
    tables = (torch.stack(pair, 1).to(device, dtype) for pair in zip(rotating, still, strict=True))
    return tuple(tables)  # type: ignore[return-value]  # a pair from a pair


def rope_frequencies(rope: Rope, context_tokens: int) -> Tensor:
    """Radians per position for each pair of channels, float32 [channels / 2], of a model that is
    loaded with this context."""
    exponents = torch.arange(0, rope.channels, 2, dtype=torch.int64).float() / rope.channels
    wavelike = rope.theta**exponents
    scaling = rope.scaling
    if isinstance(scaling, LongScaling):
        is_long = context_tokens > scaling.original_context_tokens
        factors = scaling.long_factors if is_long else scaling.short_factors
        return 1.0 / (torch.tensor(factors) * wavelike)
    frequencies = 1.0 / wavelike
    if isinstance(scaling, LinearScaling):
        return frequencies / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        return _llama3_frequencies(frequencies, scaling)
    return frequencies


def _llama3_frequencies(frequencies: Tensor, scaling: Llama3Scaling) -> Tensor:
    wavelengths = 2 * math.pi / frequencies
    low = scaling.original_context_tokens / scaling.low_freq_factor
    high = scaling.original_context_tokens / scaling.high_freq_factor
    blend = (scaling.original_context_tokens / wavelengths - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    blended = (1 - blend) * frequencies / scaling.factor + blend * frequencies
    stretched = torch.where(wavelengths > low, frequencies / scaling.factor, blended)
    return torch.where(wavelengths < high, frequencies, stretched)
