"""Products with matrices of few bits, by torch's own kernels where they fit.

On CPUs those read a quarter (4 bits) or half (8 bits) of what bfloat16 takes, and each row's result
is bit for bit the same for any number of rows (measured, torch 2.13, AVX-512). With 4 bits they are
three times faster for one row, as fast for eight, and two times slower for 32: so a model that is
too large for bfloat16 keeps its codes, and a smaller one is widened to it, for its prompts or
altogether (`CodesFor`). What a GPU's kernel gives was never seen here; like every kernel it is used
only where it agrees with the plain formula.
"""

from collections.abc import Callable
from enum import Enum

import torch
from torch import Tensor

from capanode.engines.grouped_matrix import GroupedMatrix, Matrix
from capanode.engines.linear import INVARIANT_ROWS, Linear, make_linear

# The matrices of a model that in bfloat16 take less than this are widened, on a CPU.
WIDENED_BYTES_MAX = 1024**3
# Up to so many answers at a time 4 bits are faster than bfloat16, or as fast.
FEW_SLOTS = 8

_INT4_GROUPS = (32, 64, 128, 256)
# torch's kernel for GPUs reads this many times 16 columns at once.
_INNER_TILES = 8
_CHECKED_ROWS = 64
# bfloat16 keeps 8 bits: scales, offsets and the result are each rounded to that.
_ERROR_MAX = 0.02


class CodesFor(Enum):
    """Which products compute with the codes. Prompts and answers never share one, so that each may
    have a kernel of its own; a model whose answers alone have codes is in memory twice."""

    NOTHING = "nothing"
    ANSWERS = "answers"
    ALL = "all"


def codes_for(dense_bytes: int, device: torch.device, *, slots: int) -> CodesFor:
    """For a model whose matrices would take `dense_bytes` in bfloat16, and that gives up to `slots`
    answers at a time."""
    if device.type == "cuda" or dense_bytes > WIDENED_BYTES_MAX:
        return CodesFor.ALL
    return CodesFor.ANSWERS if slots <= FEW_SLOTS else CodesFor.NOTHING


def make_matrix_linear(
    matrix: Matrix, bias: Tensor | None, dtype: torch.dtype, *, codes: CodesFor
) -> tuple[Linear, bool]:
    """`x @ matrix.T + bias` for 2-D `x` of `dtype`; whether any of it computes with the codes."""
    if isinstance(matrix, Tensor):
        return make_linear(matrix, bias), False
    multiply = _kernel(matrix, codes) if dtype == torch.bfloat16 else None
    if multiply is None or not _agrees(multiply, matrix):
        return make_linear(matrix.dense(dtype), bias), False
    with_codes = multiply if bias is None else _adding(multiply, bias)
    if codes is CodesFor.ALL:
        return with_codes, True
    widened = make_linear(matrix.dense(dtype), bias)
    # A pass over prompts has more rows than any over answers.
    return lambda x: with_codes(x) if len(x) <= INVARIANT_ROWS else widened(x), True


def _adding(multiply: Linear, bias: Tensor) -> Linear:
    return lambda x: multiply(x).add_(bias)


def _kernel(matrix: GroupedMatrix, codes: CodesFor) -> Linear | None:
    if codes is CodesFor.NOTHING or (codes is CodesFor.ANSWERS and matrix.bits != 4):
        return None
    rows, columns = matrix.codes.shape
    on_gpu = matrix.codes.device.type == "cuda"
    if matrix.bits == 8 and matrix.scales.shape[1] == 1:
        is_symmetric = torch.equal(matrix.offsets, -128 * matrix.scales)
        return _int8(matrix) if is_symmetric and not on_gpu else None
    if matrix.bits != 4 or matrix.group_size not in _INT4_GROUPS or rows % 16:
        return None
    if on_gpu:
        return None if columns % (16 * _INNER_TILES) else _int4_on_gpu(matrix)
    return _int4(matrix)


def _int8(matrix: GroupedMatrix) -> Linear:
    codes = (matrix.codes ^ 128).view(torch.int8)
    scales = matrix.scales[:, 0].to(torch.bfloat16)
    kernel = torch.ops.aten._weight_int8pack_mm.default
    return _call(lambda x: kernel(x, codes, scales))


def _int4(matrix: GroupedMatrix) -> Linear:
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(matrix.codes.int(), 1)
    group_size, pairs = matrix.group_size, _scales_and_centres(matrix)
    kernel = torch.ops.aten._weight_int4pack_mm_for_cpu.default
    return _call(lambda x: kernel(x, packed, group_size, pairs))


def _int4_on_gpu(matrix: GroupedMatrix) -> Linear:
    halves = (matrix.codes[:, ::2] << 4) | matrix.codes[:, 1::2]
    packed = torch.ops.aten._convert_weight_to_int4pack(halves.contiguous(), _INNER_TILES)
    group_size, pairs = matrix.group_size, _scales_and_centres(matrix)
    kernel = torch.ops.aten._weight_int4pack_mm.default
    return _call(lambda x: kernel(x, packed, group_size, pairs))


def _call(multiply: Callable[[Tensor], object]) -> Linear:
    def linear(x: Tensor) -> Tensor:
        product = multiply(x.contiguous())  # The kernels take nothing else.
        assert isinstance(product, Tensor)
        return product

    return linear


def _scales_and_centres(matrix: GroupedMatrix) -> Tensor:
    """[groups, rows, 2], as both kernels take it: value = (code - 8) * scale + centre."""
    centres = matrix.offsets + 8 * matrix.scales
    return torch.stack((matrix.scales, centres), -1).transpose(0, 1).contiguous().bfloat16()


def _agrees(multiply: Linear, matrix: GroupedMatrix) -> bool:
    """Compare the first rows of the matrix with the formula, on numbers without a pattern."""
    columns = matrix.codes.shape[1]
    numbers = torch.sin(torch.arange(4 * columns, device=matrix.codes.device) ** 1.5)
    x = numbers.view(4, columns).bfloat16()
    try:
        found = multiply(x)[:, :_CHECKED_ROWS].float()
    except RuntimeError:  # A kernel that this device or build of torch does not have.
        return False
    expected = x.float() @ matrix[:_CHECKED_ROWS].dense(torch.float32).T
    return bool((found - expected).norm() <= _ERROR_MAX * expected.norm())
