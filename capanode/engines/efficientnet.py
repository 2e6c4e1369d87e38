"""EfficientNet-Lite: inverted bottlenecks, relu6, TensorFlow's padding, no squeeze-and-excitation.

Batch normalisation is folded into the convolutions at load: at inference it is one more scale and
shift of each channel.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from capanode.engines.base import ModelLoadError
from capanode.engines.weights import Weights

_SIZE_MAX = 1 << 16
_REPEATS_MAX = 64


@dataclass(frozen=True, slots=True)
class Stage:
    """Blocks of one shape; only the first of them strides and changes the number of channels."""

    repeats: int
    kernel: int
    stride: int
    expansion: int
    channels_in: int
    channels_out: int


@dataclass(frozen=True, slots=True)
class EfficientNetConfig:
    stages: tuple[Stage, ...]
    stem_channels: int
    head_channels: int
    classes: int
    norm_eps: float
    image_size: int
    image_mean: float
    image_std: float
    crop_fraction: float
    resample: str

    @classmethod
    def parse(cls, plain: Mapping[str, Any]) -> "EfficientNetConfig":
        """Raises ModelLoadError if the config is not one that `EfficientNetLite` runs exactly."""
        if "EfficientNetLite" not in (plain.get("architectures") or ()):
            raise ModelLoadError("only the EfficientNetLite architecture classifies here")
        if plain.get("hidden_act") != "relu6":
            raise ModelLoadError("only the relu6 activation is run here")
        blocks = plain.get("blocks")
        if not isinstance(blocks, list) or not blocks:
            raise ModelLoadError("config.json: blocks are missing")
        return cls(
            stages=tuple(_stage(block) for block in blocks),
            stem_channels=_size(plain, "stem_channels"),
            head_channels=_size(plain, "head_channels"),
            classes=_size(plain, "num_classes"),
            norm_eps=_number(plain, "batch_norm_eps"),
            image_size=_size(plain, "image_size"),
            image_mean=_number(plain, "image_mean"),
            image_std=_number(plain, "image_std"),
            crop_fraction=_number(plain, "crop_fraction"),
            resample=str(plain.get("resample")),
        )


class _Convolution:
    """A convolution with TensorFlow's "same" padding: the odd pixel goes right and below."""

    def __init__(self, weight: Tensor, bias: Tensor, *, stride: int, groups: int) -> None:
        self._weight = weight.contiguous(memory_format=torch.channels_last)
        self._bias = bias
        self._stride, self._groups = stride, groups

    def __call__(self, x: Tensor) -> Tensor:
        kernel, stride = self._weight.shape[-1], self._stride
        totals = [max((-(-size // stride) - 1) * stride + kernel - size, 0) for size in x.shape[2:]]
        padding = [total // 2 for total in totals]
        if any(total % 2 for total in totals):
            top, left = padding
            x = functional.pad(x, (left, totals[1] - left, top, totals[0] - top))
            padding = [0, 0]
        return functional.conv2d(x, self._weight, self._bias, stride, padding, groups=self._groups)


@dataclass(frozen=True, slots=True)
class _Block:
    expand: _Convolution | None
    depthwise: _Convolution
    project: _Convolution
    has_shortcut: bool

    def __call__(self, x: Tensor) -> Tensor:
        y = x if self.expand is None else _relu6(self.expand(x))
        y = self.project(_relu6(self.depthwise(y)))
        return y.add_(x) if self.has_shortcut else y


class EfficientNetLite:
    """Weights and the forward pass, in float32."""

    def __init__(
        self, config: EfficientNetConfig, weights: Weights, *, device: torch.device
    ) -> None:
        build = _Builder(weights, config.norm_eps, device)
        self._stem = build.convolution("conv_stem", "bn0", 3, config.stem_channels, 3, stride=2)
        self._blocks: list[_Block] = []
        channels = config.stem_channels
        for stage in config.stages:
            for repeat in range(stage.repeats):
                name = f"blocks.{len(self._blocks)}"
                stride = stage.stride if repeat == 0 else 1
                self._blocks.append(build.block(name, stage, channels, stride))
                channels = stage.channels_out
        self._head = build.convolution("conv_head", "bn1", channels, config.head_channels, 1)
        self._classifier_weight = build.take("fc.weight", config.classes, config.head_channels)
        self._classifier_bias = build.take("fc.bias", config.classes)

    def classify(self, images: Tensor) -> Tensor:
        """Logits [images, classes] of prepared images [images, 3, size, size]."""
        x = _relu6(self._stem(images.contiguous(memory_format=torch.channels_last)))
        for block in self._blocks:
            x = block(x)
        pooled = _relu6(self._head(x)).mean((2, 3))
        return functional.linear(pooled, self._classifier_weight, self._classifier_bias)


class _Builder:
    def __init__(self, weights: Weights, norm_eps: float, device: torch.device) -> None:
        self._weights, self._norm_eps, self._device = weights, norm_eps, device

    def block(self, name: str, stage: Stage, channels: int, stride: int) -> _Block:
        wide, out = channels * stage.expansion, stage.channels_out
        expand = None
        if stage.expansion != 1:
            expand = self.convolution(f"{name}.expand_conv", f"{name}.bn0", channels, wide, 1)
        return _Block(
            expand=expand,
            depthwise=self.convolution(
                f"{name}.depthwise_conv",
                f"{name}.bn1",
                1,
                wide,
                stage.kernel,
                stride=stride,
                groups=wide,
            ),
            project=self.convolution(f"{name}.project_conv", f"{name}.bn2", wide, out, 1),
            has_shortcut=stride == 1 and channels == out,
        )

    def convolution(
        self,
        name: str,
        norm: str,
        channels_in: int,
        channels_out: int,
        kernel: int,
        *,
        stride: int = 1,
        groups: int = 1,
    ) -> _Convolution:
        """A convolution with the normalisation that follows it."""
        weight = self.take(f"{name}.weight", channels_out, channels_in, kernel, kernel)
        scale, shift, mean, variance = (
            self.take(f"{norm}.{part}", channels_out)
            for part in ("weight", "bias", "running_mean", "running_var")
        )
        factor = scale * torch.rsqrt(variance + self._norm_eps)
        return _Convolution(
            weight * factor[:, None, None, None],
            shift - mean * factor,
            stride=stride,
            groups=groups,
        )

    def take(self, name: str, *shape: int) -> Tensor:
        return self._weights.take(name, shape, torch.float32).to(self._device, copy=True)


def _relu6(x: Tensor) -> Tensor:
    return functional.hardtanh(x, 0.0, 6.0, inplace=True)


def _stage(block: object) -> Stage:
    if (
        not isinstance(block, list)
        or len(block) != 6
        or not all(type(number) is int and 0 < number <= _SIZE_MAX for number in block)
        or block[0] > _REPEATS_MAX
    ):
        raise ModelLoadError("config.json: a block is not six natural numbers")
    return Stage(*block)


def _size(plain: Mapping[str, Any], key: str) -> int:
    value = plain.get(key)
    if type(value) is not int or not 0 < value <= _SIZE_MAX:
        raise ModelLoadError(f"config.json: {key} is missing or out of range")
    return value


def _number(plain: Mapping[str, Any], key: str) -> float:
    value = plain.get(key)
    if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
        raise ModelLoadError(f"config.json: {key} is missing or out of range")
    return float(value)
