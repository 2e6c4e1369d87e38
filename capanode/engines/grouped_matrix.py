"""Matrices whose values are few bits each, with scales that groups of columns share."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class GroupedMatrix:
    """value[r, c] = codes[r, c] * scales[r, g] + offsets[r, g], where group g holds column c.

    `codes` are uint8 [rows, columns], one a byte; `scales` and `offsets` float32 [rows, groups]
    with groups of equal size.
    """

    codes: Tensor
    scales: Tensor
    offsets: Tensor
    bits: int

    @property
    def group_size(self) -> int:
        return self.codes.shape[1] // self.scales.shape[1]

    def to(self, device: torch.device) -> "GroupedMatrix":
        codes, scales, offsets = (
            self.codes.to(device),
            self.scales.to(device),
            self.offsets.to(device),
        )
        return GroupedMatrix(codes, scales, offsets, self.bits)

    def dense(self, dtype: torch.dtype) -> Tensor:
        """[rows, columns], rounded once."""
        rows, groups = self.scales.shape
        grouped = self.codes.view(rows, groups, -1).float()
        values = torch.addcmul(self.offsets[..., None], grouped, self.scales[..., None])
        return values.reshape(rows, -1).to(dtype)

    def __getitem__(self, rows: Tensor | slice) -> "GroupedMatrix":
        return GroupedMatrix(self.codes[rows], self.scales[rows], self.offsets[rows], self.bits)


Matrix = Tensor | GroupedMatrix


def join_matrices(parts: Sequence[Matrix], dtype: torch.dtype) -> Matrix:
    """One below another; in groups only if all of them are, in like ones."""
    grouped = [part for part in parts if isinstance(part, GroupedMatrix)]
    if len(grouped) == len(parts) and len({(p.bits, p.group_size) for p in grouped}) == 1:
        return GroupedMatrix(
            torch.cat([part.codes for part in grouped]),
            torch.cat([part.scales for part in grouped]),
            torch.cat([part.offsets for part in grouped]),
            grouped[0].bits,
        )
    return torch.cat(
        [part.dense(dtype) if isinstance(part, GroupedMatrix) else part for part in parts]
    )
