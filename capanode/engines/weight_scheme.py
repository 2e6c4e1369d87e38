"""How a model's files hold its matrices, as `quantization_config` in config.json says.

It needs no torch: the store asks it before a model is kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from capanode.engines.base import ModelLoadError
from capanode.engines.config_fields import ConfigFields

# Packed matrices hold whole codes in words of 32 bits.
_PACKED_BITS = (4, 8)
_BLOCK_MAX = 4096


class Packing(StrEnum):
    """Which tensors a matrix is made of."""

    FLOAT8 = "float8"  # DeepSeek, Qwen, compressed-tensors: float8 and scales
    INT8 = "int8"  # compressed-tensors: int8 and scales
    WORDS = "words"  # compressed-tensors: codes along the columns of 32-bit words
    GPTQ = "gptq"
    GPTQ_V2 = "gptq_v2"  # zero points are stored as they are, not less one
    AWQ = "awq"
    GROUPS = "groups"  # ours, of GGUF files: words of codes, scales and offsets


@dataclass(frozen=True, slots=True)
class WeightScheme:
    """`group_size` columns of a row share a scale; None: the whole row, or what the files' scales
    say. `block` is the size of the blocks that share a scale (rows, columns)."""

    packing: Packing
    bits: int
    group_size: int | None = None
    block: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        """In the words of the market's `quantizations` constraint."""
        return "fp8" if self.packing is Packing.FLOAT8 else f"int{self.bits}"


def read_weight_scheme(plain: Mapping[str, Any]) -> WeightScheme | None:
    """Of a whole config.json; None where weights are plain. Raises ModelLoadError for what is not
    read here."""
    section = ConfigFields(plain).section("quantization_config")
    if section is None:
        return None
    readers = {
        "fp8": _read_fp8,
        "awq": _read_awq,
        "gptq": _read_gptq,
        "capacloud-groups": _read_groups,
        "compressed-tensors": _read_compressed,
    }
    return readers[section.word("quant_method", "none", tuple(readers))](section)


def _read_fp8(section: ConfigFields) -> WeightScheme:
    section.word("fmt", "e4m3", ("e4m3", "float8_e4m3fn"))
    section.word("scale_fmt", "float", ("float", "ue8m0"))
    size = section.get("weight_block_size")
    return WeightScheme(Packing.FLOAT8, 8, block=None if size is None else _block(size))


def _read_awq(section: ConfigFields) -> WeightScheme:
    section.word("version", "gemm", ("gemm", "GEMM"))
    return WeightScheme(
        Packing.AWQ, _bits(section, "bits", (4,)), group_size=_group_size(section, "group_size")
    )


def _read_gptq(section: ConfigFields) -> WeightScheme:
    kind = section.word("checkpoint_format", "gptq", ("gptq", "gptq_v2"))
    return WeightScheme(
        Packing(kind),
        _bits(section, "bits", _PACKED_BITS),
        group_size=_group_size(section, "group_size"),
    )


def _read_groups(section: ConfigFields) -> WeightScheme:
    return WeightScheme(
        Packing.GROUPS,
        _bits(section, "bits", (4,)),
        group_size=_group_size(section, "group_size"),
    )


def _read_compressed(section: ConfigFields) -> WeightScheme:
    if section.get("transform_config"):
        raise ModelLoadError("quantization_config: transform_config is not run here")
    sparsity = section.section("sparsity_config")
    if sparsity is not None:
        sparsity.word("format", "dense", ("dense",))
    section.word("quantization_status", "compressed", ("compressed", "frozen"))
    kind = section.word(
        "format",
        "none",
        ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized"),
    )
    groups = section.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise ModelLoadError("quantization_config: config_groups is missing")
    schemes = {_read_group(group, kind) for group in groups.values()}
    if len(schemes) > 1:
        raise ModelLoadError("quantization_config: groups that differ are not run here")
    return schemes.pop()


def _read_group(group: object, kind: str) -> WeightScheme:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise ModelLoadError("quantization_config: a group does not say how its weights are held")
    fields = ConfigFields(weights, "quantization_config: weights")
    strategy = fields.word("strategy", "tensor", ("tensor", "channel", "group", "block"))
    if fields.word("type", "int", ("int", "float")) == "float":
        _bits(fields, "num_bits", (8,))
        block = _block(fields.get("block_structure")) if strategy == "block" else None
        return WeightScheme(Packing.FLOAT8, 8, block=block)
    if strategy == "block":
        raise ModelLoadError("quantization_config: integers in blocks are not run here")
    is_packed = kind == "pack-quantized"
    bits = _bits(fields, "num_bits", _PACKED_BITS if is_packed else (8,))
    packing = Packing.WORDS if is_packed else Packing.INT8
    size = _group_size(fields, "group_size") if strategy == "group" else None
    return WeightScheme(packing, bits, group_size=size)


def _bits(fields: ConfigFields, key: str, known: tuple[int, ...]) -> int:
    bits = fields.size(key)
    if bits not in known:
        raise ModelLoadError(f"quantization_config: {bits} bits are not run here")
    return bits


def _group_size(fields: ConfigFields, key: str) -> int | None:
    """-1 stands for whole rows."""
    if fields.get(key) == -1:
        return None
    size = fields.size(key)
    if size % 8:
        raise ModelLoadError(f"quantization_config: groups of {size} are not run here")
    return size


def _block(size: object) -> tuple[int, int]:
    if not isinstance(size, list) or len(size) != 2:
        raise ModelLoadError("quantization_config: a block's size is not two numbers")
    if not all(type(side) is int and 0 < side <= _BLOCK_MAX for side in size):
        raise ModelLoadError("quantization_config: a block's size is out of range")
    return size[0], size[1]
