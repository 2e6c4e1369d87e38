"""Takes the matrices of a model's files, whatever its publisher quantised them to.

Whether a matrix is quantised is read off its tensors, as publishers leave some of them plain. What
they say of a matrix is checked before it is computed with: shapes, groups, and scales that are
finite. Sources of the layouts: AutoGPTQ, AutoAWQ (`gemm`), compressed-tensors, and DeepSeek-V3's
`weight_scale_inv`.
"""

import torch
from torch import Tensor

from capanode.engines.base import ModelLoadError
from capanode.engines.grouped_matrix import GroupedMatrix, Matrix
from capanode.engines.weight_scheme import Packing, WeightScheme
from capanode.engines.weights import Weights

# AutoAWQ packs columns 0, 2, 4, 6, 1, 3, 5, 7 of each eight, lowest bits first: column i is found
# at place _AWQ_PLACES[i].
_AWQ_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
_WORD_BITS = 32


class MatrixReader:
    """All methods raise ModelLoadError."""

    def __init__(self, weights: Weights, scheme: WeightScheme | None, dtype: torch.dtype) -> None:
        """Plain matrices are given in `dtype`."""
        self._weights, self._scheme, self._dtype = weights, scheme, dtype

    def take(self, module: str, rows: int, columns: int) -> Matrix:
        """The matrix of a module, [rows, columns]."""
        scheme, name = self._scheme, f"{module}.weight"
        stored = self._weights.dtype(name) if name in self._weights else None
        if scheme is None or (
            stored is not None and stored.is_floating_point and stored.itemsize > 1
        ):
            return self._weights.take(name, (rows, columns), self._dtype)
        if scheme.packing is Packing.FLOAT8:
            return self._float8(module, rows, columns, scheme)
        if scheme.packing is Packing.INT8:
            return self._int8(module, rows, columns, scheme)
        if scheme.packing is Packing.GROUPS:
            return self._groups(module, rows, columns, scheme)
        if scheme.packing is Packing.WORDS:
            return self._words(module, rows, columns, scheme)
        return self._transposed(module, rows, columns, scheme)

    def _float8(self, module: str, rows: int, columns: int, scheme: WeightScheme) -> Tensor:
        codes = self._weights.take(f"{module}.weight", (rows, columns), torch.float8_e4m3fn)
        inverse = f"{module}.weight_scale_inv"
        name = inverse if inverse in self._weights else f"{module}.weight_scale"
        if scheme.block is None:
            scales = self._row_scales(name, rows)
            return (codes.float() * scales).to(self._dtype)
        height, width = scheme.block
        blocks = (-(-rows // height), -(-columns // width))
        scales = self._finite(name, *blocks)
        by_row = scales.repeat_interleave(height, 0)[:rows]
        return (codes.float() * by_row.repeat_interleave(width, 1)[:, :columns]).to(self._dtype)

    def _int8(self, module: str, rows: int, columns: int, scheme: WeightScheme) -> GroupedMatrix:
        if f"{module}.weight_zero_point" in self._weights:
            raise ModelLoadError(f"{module} has zero points beside int8, which is not run here")
        codes = self._weights.take(f"{module}.weight", (rows, columns), torch.int8)
        name = f"{module}.weight_scale"
        if scheme.group_size is None:
            scales = self._row_scales(name, rows)
        else:
            scales = self._finite(name, rows, _groups(module, columns, scheme))
        # From signed to unsigned: the same numbers, 128 higher.
        unsigned = codes.view(torch.uint8) ^ 128
        return GroupedMatrix(unsigned, scales, -128 * scales, 8)

    def _groups(self, module: str, rows: int, columns: int, scheme: WeightScheme) -> GroupedMatrix:
        packed = self._integers(
            f"{module}.weight_packed", rows, columns * scheme.bits // _WORD_BITS
        )
        groups = _groups(module, columns, scheme)
        scales = self._finite(f"{module}.weight_scale", rows, groups)
        offsets = self._finite(f"{module}.weight_offset", rows, groups)
        return GroupedMatrix(_unpack(packed, scheme.bits), scales, offsets, scheme.bits)

    def _words(self, module: str, rows: int, columns: int, scheme: WeightScheme) -> Matrix:
        per_word = _WORD_BITS // scheme.bits
        packed = self._integers(f"{module}.weight_packed", rows, -(-columns // per_word))
        codes = _unpack(packed, scheme.bits)[:, :columns].contiguous()
        groups = _groups(module, columns, scheme)
        scales = self._finite(f"{module}.weight_scale", rows, groups)
        zeros: Tensor | float = float(1 << (scheme.bits - 1))
        if f"{module}.weight_zero_point" in self._weights:
            packed = self._integers(f"{module}.weight_zero_point", -(-rows // per_word), groups)
            zeros = _unpack(packed.T, scheme.bits)[:, :rows].T.float()
        group_of = self._group_of(f"{module}.weight_g_idx", columns, groups)
        return self._grouped(codes, scales, zeros, group_of, scheme.bits)

    def _transposed(self, module: str, rows: int, columns: int, scheme: WeightScheme) -> Matrix:
        """AWQ and GPTQ keep a row of the product as a column."""
        bits = scheme.bits
        per_word = _WORD_BITS // bits
        if rows % per_word or columns % per_word:
            raise ModelLoadError(f"{module} cannot hold whole words of codes")
        groups = _groups(module, columns, scheme)
        scales = self._finite(f"{module}.scales", groups, rows).T.contiguous()
        zeros = self._integers(f"{module}.qzeros", groups, rows // per_word)
        if scheme.packing is Packing.AWQ:
            packed = self._integers(f"{module}.qweight", columns, rows // per_word)
            codes = _unpack(packed, bits, _AWQ_PLACES).T.contiguous()
            points = _unpack(zeros, bits, _AWQ_PLACES).T.float()
            return self._grouped(codes, scales, points, None, bits)
        packed = self._integers(f"{module}.qweight", columns // per_word, rows)
        codes = _unpack(packed.T, bits)
        points = _unpack(zeros, bits).T.float()
        if scheme.packing is Packing.GPTQ:
            points = points + 1
        group_of = self._group_of(f"{module}.g_idx", columns, groups)
        return self._grouped(codes, scales, points, group_of, bits)

    def _grouped(
        self,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | float,
        group_of: Tensor | None,
        bits: int,
    ) -> Matrix:
        """Dense where a group's columns are not side by side (GPTQ's `desc_act`)."""
        offsets = -zeros * scales
        if group_of is None:
            return GroupedMatrix(codes, scales, offsets, bits)
        values = torch.addcmul(offsets[:, group_of], codes.float(), scales[:, group_of])
        return values.to(self._dtype)

    def _group_of(self, name: str, columns: int, groups: int) -> Tensor | None:
        """The group of each column; None if columns are in order."""
        if name not in self._weights:
            return None
        group_of = self._weights.take(name, (columns,), torch.int64)
        if int(group_of.min()) < 0 or int(group_of.max()) >= groups:
            raise ModelLoadError(f"{name} names a group that is not there")
        in_order = torch.arange(columns) // (columns // groups)
        return None if torch.equal(group_of, in_order) else group_of

    def _row_scales(self, name: str, rows: int) -> Tensor:
        """One for each row or one for all, [rows, 1]."""
        shape = self._weights.shape(name)
        if shape in ((rows,), (rows, 1)):
            return self._finite(name, *shape).view(rows, 1)
        if shape in ((), (1,), (1, 1)):
            return self._finite(name, *shape).view(1, 1).expand(rows, 1)
        raise ModelLoadError(f"{name} has shape {shape}, neither one nor {rows} scales")

    def _finite(self, name: str, *shape: int) -> Tensor:
        scales = self._weights.take(name, shape, torch.float32)
        if not torch.isfinite(scales).all():
            raise ModelLoadError(f"{name} holds scales that are not finite")
        return scales

    def _integers(self, name: str, *shape: int) -> Tensor:
        return self._weights.take(name, shape, torch.int32)


def _groups(module: str, columns: int, scheme: WeightScheme) -> int:
    size = scheme.group_size or columns
    if columns % size:
        raise ModelLoadError(f"{module} has {columns} columns, not whole groups of {size}")
    return columns // size


def _unpack(words: Tensor, bits: int, places: tuple[int, ...] | None = None) -> Tensor:
    """The codes in int32 `words` [n, m], lowest bits first unless `places` says where each is:
    uint8 [n, m * codes a word]."""
    order = places or range(_WORD_BITS // bits)
    shifts = torch.tensor([place * bits for place in order], dtype=torch.int32)
    codes = (words[..., None] >> shifts) & ((1 << bits) - 1)
    return codes.to(torch.uint8).flatten(1)
