"""Rotary positions (Su et al. 2021); the halves of a head are its pairs, as in transformers."""

import torch
from torch import Tensor


class Rotary:
    """Tables for one base, up to `tokens_max` positions."""

    def __init__(self, base: float, width: int, tokens_max: int, device: torch.device) -> None:
        powers = torch.arange(0, width, 2, dtype=torch.float) / width
        angles = torch.arange(tokens_max).float()[:, None] / base**powers
        cosines, sines = angles.cos(), angles.sin()
        self._half = width // 2
        self._cosines = torch.cat((cosines, cosines), 1).to(device)
        # With the sign in the sines, rotating is a roll and two products.
        self._sines = torch.cat((-sines, sines), 1).to(device)

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """For tokens at `positions` [rows]: what `rotate` takes, each [rows, 1, width]."""
        return self._cosines[positions].unsqueeze(1), self._sines[positions].unsqueeze(1)

    def rotate(self, heads: Tensor, places: tuple[Tensor, Tensor]) -> Tensor:
        """`heads` [rows, heads, width] turned to their places."""
        cosines, sines = places
        return (heads * cosines).addcmul_(torch.roll(heads, self._half, -1), sines)
