"""The 4-bit types of GGUF as codes, scales and offsets, so that a model need not be widened.

value = code * scale + offset in groups of 32 columns: exact in Q4_0 and Q4_1; in Q4_K, whose scales
are products, within the rounding of a float16. Layouts of blocks: ggml-common.h.
"""

from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

GROUP_SIZE = 32
CODE_BITS = 4
KEPT_TYPES = frozenset({"Q4_0", "Q4_1", "Q4_K"})

_SUPER_BLOCK_BYTES = 144
_CODES_PER_WORD = 8

Bytes = npt.NDArray[np.uint8]


def packed_codes(tensor: gguf.ReaderTensor) -> npt.NDArray[Any]:
    """The first code lowest, eight to a word: int32 [rows, columns / 8]."""
    rows = len(tensor.data)
    if tensor.tensor_type.name == "Q4_K":
        nibbles = _super_blocks(tensor.data)[:, 16:].reshape(-1, 4, 1, GROUP_SIZE)
    else:
        nibbles = _blocks(tensor)[:, -GROUP_SIZE // 2 :].reshape(-1, 1, 1, GROUP_SIZE // 2)
    # The low halves of some bytes, then the high halves of the same.
    codes = (nibbles >> np.array([0, 4], np.uint8).reshape(1, 1, 2, 1)) & 15
    words = codes.reshape(rows, -1, _CODES_PER_WORD).astype(np.uint32)
    shifts = np.arange(0, 32, CODE_BITS, dtype=np.uint32)
    joined: npt.NDArray[np.uint32] = np.bitwise_or.reduce(words << shifts, axis=-1)
    return joined.view("<i4")


def group_scales(tensor: gguf.ReaderTensor) -> npt.NDArray[Any]:
    """float16 [rows, groups]."""
    return _as_half(tensor, _scales_and_offsets(tensor)[0])


def group_offsets(tensor: gguf.ReaderTensor) -> npt.NDArray[Any]:
    """float16 [rows, groups]."""
    return _as_half(tensor, _scales_and_offsets(tensor)[1])


def _scales_and_offsets(
    tensor: gguf.ReaderTensor,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    kind = tensor.tensor_type.name
    if kind == "Q4_K":
        blocks = _super_blocks(tensor.data)
        halves = blocks[:, :4].copy().view("<f2").astype(np.float32)
        scales, mins = gguf.quants.Q4_K.get_scale_min(blocks[:, 4:16])
        return halves[:, :1] * scales.astype(np.float32), -halves[:, 1:] * mins.astype(np.float32)
    blocks = _blocks(tensor)
    halves = blocks[:, : -GROUP_SIZE // 2].copy().view("<f2").astype(np.float32)
    scales = halves[:, :1]
    return scales, halves[:, 1:] if kind == "Q4_1" else -8 * scales


def _as_half(tensor: gguf.ReaderTensor, values: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    with np.errstate(over="ignore"):  # The check below says it in words.
        halves = values.reshape(len(tensor.data), -1).astype("<f2")
    if not np.isfinite(halves).all():
        raise ValueError(f"tensor {tensor.name[:64]!r} holds scales that are not finite")
    return halves


def _blocks(tensor: gguf.ReaderTensor) -> Bytes:
    _, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
    return np.asarray(tensor.data, np.uint8).reshape(-1, size)


def _super_blocks(data: Any) -> Bytes:
    return np.asarray(data, np.uint8).reshape(-1, _SUPER_BLOCK_BYTES)
