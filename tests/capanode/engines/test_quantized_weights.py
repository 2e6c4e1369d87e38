"""Quantised files of every kind that is read, written here as their formats' documents say, and the
same files with lies in them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from capanode.engines.attention import DecodeAttention, PrefillChunk
from capanode.engines.base import ModelLoadError
from capanode.engines.grouped_linear import FEW_SLOTS, CodesFor, make_matrix_linear
from capanode.engines.grouped_matrix import GroupedMatrix
from capanode.engines.quantized_weights import MatrixReader
from capanode.engines.weight_scheme import read_weight_scheme
from capanode.engines.weights import Weights
from protocol.generation import GenerationInput
from tests.capanode.engines.test_decoder import load_model
from tests.capanode.engines.tiny_models import LLAMA, llama_weights, load, run, write_llama

ROWS, COLUMNS, GROUP = 48, 64, 32
GROUPS = COLUMNS // GROUP
Tensors = dict[str, Tensor]


def random_parts(bits: int, *, groups: int = GROUPS) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [rows, columns], scales and zero points [rows, groups]."""
    generator = torch.Generator().manual_seed(bits)
    codes = torch.randint(1 << bits, (ROWS, COLUMNS), generator=generator)
    scales = torch.rand((ROWS, groups), generator=generator).mul_(0.1).add_(0.01).half()
    zeros = torch.randint(1, 1 << bits, (ROWS, groups), generator=generator)
    return codes, scales, zeros


def by_formula(codes: Tensor, scales: Tensor, zeros: Tensor | int) -> Tensor:
    """(code - zero) * scale, each group's."""
    width = COLUMNS // scales.shape[1]
    wide = scales.float().repeat_interleave(width, 1)
    points = zeros.repeat_interleave(width, 1) if isinstance(zeros, Tensor) else zeros
    return (codes - points).float() * wide


def pack(codes: Tensor, bits: int) -> Tensor:
    """Along the last dimension into 32-bit words, the first code lowest."""
    per_word = 32 // bits
    words = torch.zeros((codes.shape[0], codes.shape[1] // per_word), dtype=torch.int64)
    for place in range(per_word):
        words |= codes[:, place::per_word].long() << (place * bits)
    return words.to(torch.int32)


def pack_awq(codes: Tensor) -> Tensor:
    """AutoAWQ's order: the lowest bits hold column 0, then 2, 4, 6, 1, 3, 5, 7."""
    shuffled = codes.view(len(codes), -1, 8)[:, :, [0, 2, 4, 6, 1, 3, 5, 7]]
    return pack(shuffled.flatten(1), 4)


def awq() -> tuple[dict[str, Any], Tensors, Tensor]:
    codes, scales, zeros = random_parts(4)
    config = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}
    tensors = {
        "m.qweight": pack_awq(codes.T.contiguous()),
        "m.qzeros": pack_awq(zeros.T.contiguous()),
        "m.scales": scales.T.contiguous(),
    }
    return config, tensors, by_formula(codes, scales, zeros)


def gptq(bits: int = 4, *, is_v2: bool = False) -> tuple[dict[str, Any], Tensors, Tensor]:
    codes, scales, zeros = random_parts(bits)
    config = {"quant_method": "gptq", "bits": bits, "group_size": GROUP, "desc_act": False}
    if is_v2:
        config["checkpoint_format"] = "gptq_v2"
    stored = zeros if is_v2 else zeros - 1
    tensors = {
        "m.qweight": pack(codes, bits).T.contiguous(),
        "m.qzeros": pack(stored.T.contiguous(), bits),
        "m.scales": scales.T.contiguous(),
        "m.g_idx": torch.arange(COLUMNS, dtype=torch.int32) // GROUP,
    }
    return config, tensors, by_formula(codes, scales, zeros)


def gptq_with_order() -> tuple[dict[str, Any], Tensors, Tensor]:
    """`desc_act`: the columns of a group are anywhere."""
    config, tensors, _ = gptq()
    codes, scales, zeros = random_parts(4)
    group_of = torch.arange(COLUMNS) % GROUPS
    tensors["m.g_idx"] = group_of.to(torch.int32)
    expected = (codes - zeros[:, group_of]).float() * scales.float()[:, group_of]
    return {**config, "desc_act": True}, tensors, expected


def compressed(kind: str, **weights: Any) -> dict[str, Any]:
    return {
        "quant_method": "compressed-tensors",
        "format": kind,
        "ignore": ["lm_head"],
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "kv_cache_scheme": None,
        "quantization_status": "compressed",
    }


def packed(bits: int = 4, *, has_zeros: bool = False) -> tuple[dict[str, Any], Tensors, Tensor]:
    codes, scales, zeros = random_parts(bits)
    config = compressed(
        "pack-quantized", num_bits=bits, type="int", strategy="group", group_size=GROUP
    )
    tensors = {
        "m.weight_packed": pack(codes, bits),
        "m.weight_scale": scales,
        "m.weight_shape": torch.tensor([ROWS, COLUMNS]),
    }
    if has_zeros:
        tensors["m.weight_zero_point"] = pack(zeros.T.contiguous(), bits).T.contiguous()
    return config, tensors, by_formula(codes, scales, zeros if has_zeros else 1 << (bits - 1))


def int8_channels() -> tuple[dict[str, Any], Tensors, Tensor]:
    codes, scales, _ = random_parts(8, groups=1)
    config = compressed("int-quantized", num_bits=8, type="int", strategy="channel")
    tensors = {"m.weight": (codes - 128).to(torch.int8), "m.weight_scale": scales}
    return config, tensors, by_formula(codes, scales, 128)


def float8(scales: Tensor, name: str = "weight_scale") -> tuple[Tensors, Tensor]:
    generator = torch.Generator().manual_seed(8)
    codes = torch.randn((ROWS, COLUMNS), generator=generator).to(torch.float8_e4m3fn)
    return {"m.weight": codes, f"m.{name}": scales}, codes.float()


def float8_whole() -> tuple[dict[str, Any], Tensors, Tensor]:
    tensors, values = float8(torch.tensor(0.25))
    return {"quant_method": "fp8", "activation_scheme": "static"}, tensors, values * 0.25


def float8_rows() -> tuple[dict[str, Any], Tensors, Tensor]:
    scales = torch.rand(ROWS, 1)
    tensors, values = float8(scales)
    config = compressed("float-quantized", num_bits=8, type="float", strategy="channel")
    return config, tensors, values * scales


def float8_blocks() -> tuple[dict[str, Any], Tensors, Tensor]:
    """DeepSeek's and Qwen's: blocks that do not divide the matrix."""
    scales = torch.rand(3, 4)
    tensors, values = float8(scales, "weight_scale_inv")
    wide = scales.repeat_interleave(20, 0)[:ROWS].repeat_interleave(20, 1)[:, :COLUMNS]
    config = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [20, 20]}
    return config, tensors, values * wide


FORMATS: dict[str, Callable[[], tuple[dict[str, Any], Tensors, Tensor]]] = {
    "awq": awq,
    "gptq-4": gptq,
    "gptq-8": lambda: gptq(8),
    "gptq-v2": lambda: gptq(is_v2=True),
    "gptq-desc_act": gptq_with_order,
    "packed-4": packed,
    "packed-4-asymmetric": lambda: packed(has_zeros=True),
    "packed-8": lambda: packed(8),
    "int8-channel": int8_channels,
    "fp8-tensor": float8_whole,
    "fp8-channel": float8_rows,
    "fp8-block": float8_blocks,
}


def read(folder: Path, config: dict[str, Any], tensors: Tensors) -> Tensor:
    """The module `m` as float32."""
    save_file(tensors, folder / "model.safetensors")
    scheme = read_weight_scheme({"quantization_config": config})
    matrix = MatrixReader(Weights(folder), scheme, torch.float32).take("m", ROWS, COLUMNS)
    return matrix.dense(torch.float32) if isinstance(matrix, GroupedMatrix) else matrix


@pytest.mark.parametrize("name", FORMATS)
def test_a_quantised_matrix_is_what_its_format_says(tmp_path: Path, name: str) -> None:
    config, tensors, expected = FORMATS[name]()
    torch.testing.assert_close(read(tmp_path, config, tensors), expected, rtol=1e-5, atol=1e-6)


def test_a_matrix_that_a_publisher_left_plain_is_read_as_it_is(tmp_path: Path) -> None:
    config, _, expected = FORMATS["awq"]()
    assert torch.equal(read(tmp_path, config, {"m.weight": expected}), expected)


def spoil(name: str, change: Callable[[Tensor], Tensor]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {**tensors, name: change(tensors[name]).contiguous()}


def drop(name: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {key: tensor for key, tensor in tensors.items() if key != name}


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("awq", spoil("m.scales", lambda t: t * float("nan")), "not finite"),
        ("awq", spoil("m.scales", lambda t: t[:1]), "shape"),
        ("awq", spoil("m.qzeros", lambda t: t.float()), "holds"),
        ("awq", spoil("m.qweight", lambda t: t[:-1]), "shape"),
        ("awq", drop("m.qzeros"), "lack m.qzeros"),
        ("gptq-4", spoil("m.g_idx", lambda t: t + 1), "group that is not there"),
        ("gptq-4", spoil("m.g_idx", lambda t: t - 1), "group that is not there"),
        ("gptq-4", spoil("m.scales", lambda t: t / 0), "not finite"),
        ("packed-4", spoil("m.weight_scale", lambda t: t[:, :1]), "shape"),
        ("packed-4", spoil("m.weight_packed", lambda t: t.short()), "shape|holds"),
        ("packed-4", drop("m.weight_packed"), "lack"),
        ("int8-channel", spoil("m.weight_scale", lambda t: t[1:]), "scales"),
        ("int8-channel", drop("m.weight_scale"), "lack"),
        ("fp8-tensor", drop("m.weight_scale"), "lack"),
        ("fp8-tensor", spoil("m.weight_scale", lambda t: -t / 0), "not finite"),
        ("fp8-block", spoil("m.weight_scale_inv", lambda t: t[:2]), "shape"),
        ("fp8-block", spoil("m.weight", lambda t: t.to(torch.float8_e5m2)), "holds"),
    ],
)
def test_a_quantised_file_that_lies_is_refused(
    tmp_path: Path, name: str, change: Callable[[Tensors], Tensors], reason: str
) -> None:
    config, tensors, _ = FORMATS[name]()
    if name == "packed-4" and reason == "shape|holds":
        tensors["m.weight_packed"] = tensors["m.weight_packed"][:, :-1]
    with pytest.raises(ModelLoadError, match=reason):
        read(tmp_path, config, change(tensors))


def test_float8_without_a_scheme_is_refused_and_not_read_without_its_scales(
    tmp_path: Path,
) -> None:
    _, tensors, _ = FORMATS["fp8-tensor"]()
    save_file(tensors, tmp_path / "model.safetensors")
    reader = MatrixReader(Weights(tmp_path), None, torch.float32)
    with pytest.raises(ModelLoadError, match="float8"):
        reader.take("m", ROWS, COLUMNS)


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ([], "not an object"),
        ({}, "quant_method 'none'"),
        ({"quant_method": "bitsandbytes"}, "bitsandbytes"),
        ({"quant_method": "awq", "bits": 3, "group_size": 128}, "3 bits"),
        ({"quant_method": "awq", "bits": 4, "group_size": 0}, "group_size"),
        ({"quant_method": "awq", "bits": 4, "group_size": 7}, "groups of 7"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}, "gemv"),
        ({"quant_method": "gptq", "bits": 4}, "group_size"),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "checkpoint_format": "marlin"},
            "marlin",
        ),
        ({"quant_method": "fp8", "fmt": "e5m2"}, "e5m2"),
        ({"quant_method": "fp8", "weight_block_size": [0, 128]}, "block"),
        ({"quant_method": "fp8", "weight_block_size": "128"}, "block"),
        (compressed("nvfp4-pack-quantized", num_bits=4, type="float"), "nvfp4"),
        (compressed("pack-quantized", num_bits=4, type="float"), "4 bits"),
        (compressed("pack-quantized", num_bits=2, type="int", strategy="channel"), "2 bits"),
        ({**compressed("pack-quantized"), "transform_config": {"R1": {}}}, "transform_config"),
        ({**compressed("pack-quantized"), "config_groups": {}}, "config_groups"),
        ({**compressed("pack-quantized"), "config_groups": {"a": {"weights": None}}}, "a group"),
        (
            {**compressed("pack-quantized"), "sparsity_config": {"format": "sparse-24-bitmask"}},
            "sparse-24",
        ),
    ],
)
def test_a_scheme_that_is_not_read_is_refused_by_name(config: Any, reason: str) -> None:
    with pytest.raises(ModelLoadError, match=reason):
        read_weight_scheme({"quantization_config": config})


@pytest.mark.parametrize(
    ("bits", "use"), [(4, CodesFor.ALL), (8, CodesFor.ALL), (4, CodesFor.ANSWERS)]
)
@torch.inference_mode()
def test_products_with_codes_are_near_the_formula_and_alike_for_any_number_of_rows(
    bits: int, use: CodesFor
) -> None:
    codes, scales, _ = random_parts(bits, groups=GROUPS if bits == 4 else 1)
    scales = scales.float()
    matrix = GroupedMatrix(codes.to(torch.uint8), scales, -(1 << (bits - 1)) * scales, bits)
    bias = torch.randn(ROWS).bfloat16()
    linear, has_codes = make_matrix_linear(matrix, bias, torch.bfloat16, codes=use)
    assert has_codes
    wide = torch.randn(32, 2 * COLUMNS, generator=torch.manual_seed(3)).bfloat16()
    x = wide[:, ::2]  # As a norm gives it: with gaps.
    found = linear(x)
    expected = x.float() @ matrix.dense(torch.float32).T + bias.float()
    assert (found.float() - expected).norm() < 0.01 * expected.norm()
    for rows in (1, 2, 5, 32):
        assert torch.equal(linear(x[:rows]), found[:rows])


@pytest.mark.parametrize(
    ("rows", "group", "dtype", "use"),
    [
        (40, 32, torch.bfloat16, CodesFor.ALL),
        (48, 8, torch.bfloat16, CodesFor.ALL),
        (48, 32, torch.float32, CodesFor.ALL),
        (48, 32, torch.bfloat16, CodesFor.NOTHING),
    ],
    ids=["rows", "group", "float32", "small model"],
)
def test_a_matrix_that_no_kernel_fits_is_widened(
    rows: int, group: int, dtype: torch.dtype, use: CodesFor
) -> None:
    codes = torch.randint(16, (rows, COLUMNS), generator=torch.manual_seed(4)).to(torch.uint8)
    scales = torch.full((rows, COLUMNS // group), 0.5)
    matrix = GroupedMatrix(codes, scales, -8 * scales, 4)
    linear, has_codes = make_matrix_linear(matrix, None, dtype, codes=use)
    assert not has_codes
    x = torch.eye(COLUMNS, dtype=dtype)
    torch.testing.assert_close(linear(x).float(), matrix.dense(torch.float32).T)


def quantise(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Codes and scales, symmetric in groups."""
    grouped = weight.view(len(weight), -1, GROUP)
    scales = grouped.abs().amax(-1).div_(7).half()
    codes = (grouped / scales.float()[..., None]).round().clamp(-8, 7) + 8
    return codes.view_as(weight).long(), scales


def write_int4_model(folder: Path, plain_folder: Path) -> Path:
    """A tiny model in codes of 4 bits, and in `plain_folder` the numbers that they stand for."""
    plain, stored = dict(llama_weights(LLAMA)), {}
    for name, weight in plain.items():
        if "_proj" not in name:
            stored[name] = weight.bfloat16()
            continue
        codes, scales = quantise(weight)
        width = scales.float().repeat_interleave(GROUP, 1)
        plain[name] = (codes - 8).float() * width
        stored[f"{name}_packed"], stored[f"{name}_scale"] = pack(codes, 4), scales
    for each in (folder, plain_folder):
        each.mkdir()
    write_llama(plain_folder, weights=plain, dtype="bfloat16")
    write_llama(folder, weights={}, dtype="bfloat16")
    save_file(stored, folder / "model.safetensors")
    scheme = compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": scheme}))
    return folder


@pytest.mark.parametrize(
    ("widened_bytes_max", "slots", "weights"),
    [
        (1e9, FEW_SLOTS + 1, "int4"),
        (1e9, FEW_SLOTS, "int4-packed-answers"),
        (0, FEW_SLOTS + 1, "int4-packed"),
    ],
)
@torch.inference_mode()
def test_an_int4_model_answers_as_the_numbers_in_its_file_do(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    widened_bytes_max: float,
    slots: int,
    weights: str,
) -> None:
    monkeypatch.setattr("capanode.engines.grouped_linear.WIDENED_BYTES_MAX", widened_bytes_max)
    folder = write_int4_model(tmp_path / "packed", tmp_path / "plain")
    info = load(folder, slots=slots).info
    assert info.quantization == "int4"
    assert f"weights={weights}" in info.profile.split(" ")
    prompts, answers = [], []
    for each in (folder, tmp_path / "plain"):
        model, cache = load_model(each, slots=slots)
        chunk = (PrefillChunk(0, 0, 5), [3, 1, 4, 1, 5])
        prompts.append(model.prefill([chunk], cache, padding_row=4, wanted=[0])[0][0].float())
        attention = DecodeAttention(cache, [6], model.config.attention)
        answers.append(model.decode([9], [5], attention)[0][0].float())
    for found, expected in (prompts, answers):
        assert (found - expected).norm() < 0.03 * expected.norm()
    # Prompts are read as if the file were not quantised, wherever there is memory for that.
    assert torch.equal(*prompts) == (weights != "int4-packed")
    assert torch.equal(*answers) == (weights == "int4")


@pytest.mark.parametrize("slots", [FEW_SLOTS, FEW_SLOTS + 1])
def test_answers_of_an_int4_model_are_alike_alone_and_among_others(
    tmp_path: Path, slots: int
) -> None:
    engine = load(write_int4_model(tmp_path / "packed", tmp_path / "plain"), slots=slots)
    jobs = {
        str(number): GenerationInput(
            max_tokens=12 + number,
            prompt_tokens=tuple(range(3, 20 + number)),
            temperature=1.5 * (number % 2),
            seed=number,
            ignore_eos=True,
        )
        for number in range(5)
    }
    for job_id, job_input in jobs.items():
        engine.submit(job_id, job_input)
    together = run(engine)
    for job_id, job_input in jobs.items():
        engine.submit("alone", job_input)
        assert run(engine).tokens("alone") == together.tokens(job_id)
