"""The architectures of tensor models: a multilayer perceptron, gradient-boosted trees, a small
convolutional network, and a perceptron that forecasts rows and scores how far off it was.

Each turns rows of numbers into *samples* that do not depend on each other, and computes those; the
engine cuts and joins samples of many jobs as it likes. All of it is float32.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from capanode.engines.base import ModelLoadError
from capanode.engines.weights import Weights
from protocol.limits import WINDOW_ROWS_MAX

SIZE_MAX = 1 << 16
_LAYERS_MAX = 64
_DEPTH_MAX = 64

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "gelu": functional.gelu,
    "identity": lambda x: x,
}


class TensorModel(Protocol):
    """`width` is the size of what `compute` returns per sample, `floats` the most numbers that it
    holds of one at a time, `window_rows` how many rows a sample depends on, 0 for its own only."""

    width: int
    floats: int
    window_rows: int

    def samples(self, rows: Tensor, *, context_rows: int) -> Tensor:
        """One sample for each row after the context."""
        ...

    def compute(self, samples: Tensor) -> Tensor:
        """Numbers [samples, width]."""
        ...


class RowModel:
    """A model that looks at each row alone."""

    window_rows = 0

    def samples(self, rows: Tensor, *, context_rows: int) -> Tensor:
        return rows[context_rows:]


class Perceptron(RowModel):
    """`layers` in config.json are the sizes from the input to the output; `scaler.mean` and
    `scaler.scale` may stand among the weights."""

    def __init__(self, config: Mapping[str, Any], weights: Weights, shape: Sequence[int]) -> None:
        sizes = _sizes(config, "layers")
        if tuple(shape) != (sizes[0],):
            raise ModelLoadError(f"the inputs have {list(shape)} numbers a row, not {sizes[0]}")
        self.width, self.floats = sizes[-1], 2 * max(sizes)
        self._activation = _activation(config)
        self._scaler = _scaler(weights, sizes[0])
        self._layers = [
            (
                weights.take(f"layers.{number}.weight", (out, into), torch.float32),
                weights.take(f"layers.{number}.bias", (out,), torch.float32),
            )
            for number, (into, out) in enumerate(pairwise(sizes))
        ]

    def compute(self, samples: Tensor) -> Tensor:
        mean, scale = self._scaler
        x = (samples - mean) / scale
        for number, (weight, bias) in enumerate(self._layers):
            x = functional.linear(x if number == 0 else self._activation(x), weight, bias)
        return x


class Forecaster:
    """A perceptron that foretells a row from the `window_rows` - 1 before it. The answer is the
    mean square of how far off it was, in units of `error.scale`: how far off it was in training.

    Before there are so many rows, the first one stands for those that are missing.
    """

    def __init__(self, config: Mapping[str, Any], weights: Weights, shape: Sequence[int]) -> None:
        window = read_size(config, "window_rows", high=WINDOW_ROWS_MAX)
        if len(shape) != 1 or window < 2:
            raise ModelLoadError("a forecaster needs rows of numbers, and a window of two or more")
        self.window_rows, self.width = window, 1
        self._features = shape[0]
        self._perceptron = Perceptron(config, weights, ((window - 1) * self._features,))
        if self._perceptron.width != self._features:
            raise ModelLoadError("a forecaster's last layer has another size than a row")
        self.floats = 2 * window * self._features + self._perceptron.floats
        self._scale = _positive(weights.take("error.scale", (self._features,), torch.float32))

    def samples(self, rows: Tensor, *, context_rows: int) -> Tensor:
        missing = self.window_rows - 1
        padded = torch.cat((rows[:1].expand(missing, -1), rows))
        windows = padded.unfold(0, self.window_rows, 1)[context_rows:]
        return windows.transpose(1, 2)

    def compute(self, samples: Tensor) -> Tensor:
        before, now = samples[:, :-1].flatten(1), samples[:, -1]
        error = (now - self._perceptron.compute(before)) / self._scale
        return error.square().mean(1, keepdim=True)


class Trees(RowModel):
    """Trees as tensors [trees, nodes]: at a node, `feature` <= `threshold` goes to `left`, anything
    else, and what is no number, to `right`; a leaf goes to itself, and its `value` is added to the
    `output` of its tree. `base` [width] is what an answer starts with."""

    def __init__(self, config: Mapping[str, Any], weights: Weights, shape: Sequence[int]) -> None:
        if len(shape) != 1:
            raise ModelLoadError("trees need rows of numbers")
        size = weights.shape("trees.left")
        if len(size) != 2 or not all(size):
            raise ModelLoadError("trees.left is not [trees, nodes]")
        (self.width,) = _one_dimension(weights, "base")
        self._trees, nodes = size
        self._feature = _within(weights, "trees.feature", size, below=shape[0])
        self._left = _within(weights, "trees.left", size, below=nodes)
        self._right = _within(weights, "trees.right", size, below=nodes)
        self._output = _within(weights, "trees.output", (self._trees,), below=self.width)
        self._threshold = weights.take("trees.threshold", size, torch.float64)
        self._value = weights.take("trees.value", size, torch.float32)
        self._base = weights.take("base", (self.width,), torch.float32)
        self._depth = self._measure()
        self.floats = 6 * self._trees

    def _measure(self) -> int:
        """The longest way to a leaf. Raises ModelLoadError if a way has no end."""
        nodes = torch.arange(self._left.shape[1], device=self._left.device)
        is_leaf = (self._left == nodes) & (self._right == nodes)
        height = torch.zeros_like(self._left)
        for depth in range(_DEPTH_MAX):
            left, right = height.gather(1, self._left), height.gather(1, self._right)
            grown = torch.where(is_leaf, 0, 1 + torch.maximum(left, right))
            if torch.equal(grown, height):
                return depth
            height = grown
        raise ModelLoadError(f"a tree is deeper than {_DEPTH_MAX} nodes, or goes in circles")

    def compute(self, samples: Tensor) -> Tensor:
        device = samples.device
        trees = torch.arange(self._trees, device=device)
        at = torch.zeros((len(samples), self._trees), dtype=torch.long, device=device)
        # In float64, as they were trained: a threshold lies between two float32.
        numbers = samples.double()
        for _ in range(self._depth):
            goes_left = numbers.gather(1, self._feature[trees, at]) <= self._threshold[trees, at]
            at = torch.where(goes_left, self._left[trees, at], self._right[trees, at])
        sums = self._base.repeat(len(samples), 1)
        return sums.index_add_(1, self._output, self._value[trees, at])


class Convolutions(RowModel):
    """`layers` in config.json: {"kind": "conv", "channels", "kernel", "padding"}, {"kind": "pool",
    "size"} and, after the last of those, {"kind": "dense", "size"}. The activation follows every
    layer with weights but the last one."""

    def __init__(self, config: Mapping[str, Any], weights: Weights, shape: Sequence[int]) -> None:
        if len(shape) != 3:
            raise ModelLoadError("a convolutional network needs rows of [channels, height, width]")
        layers = config.get("layers")
        if not isinstance(layers, list) or not 0 < len(layers) <= _LAYERS_MAX:
            raise ModelLoadError("config.json: layers is missing or too long")
        self._activation = _activation(config)
        self._scaler = _scaler(weights, 1)
        self._layers: list[Callable[[Tensor], Tensor]] = []
        self.floats = 0
        size = list(shape)
        for number, layer in enumerate(layers):
            if not isinstance(layer, dict):
                raise ModelLoadError(f"config.json: layer {number} is no object")
            step, size = self._layer(layer, weights, f"layers.{number}", size)
            self._layers.append(step)
            # A convolution unrolls its input: a kernel's worth of numbers for each that it has.
            unrolled = read_size(layer, "kernel") ** 2 if layer.get("kind") == "conv" else 1
            self.floats = max(self.floats, _product(size) * (1 + unrolled))
        if len(size) != 1:
            raise ModelLoadError("config.json: the last layer is not dense")
        self.width = size[0]
        self._weighted = [layer.get("kind") != "pool" for layer in layers]

    def _layer(
        self, layer: Mapping[str, Any], weights: Weights, name: str, size: list[int]
    ) -> tuple[Callable[[Tensor], Tensor], list[int]]:
        kind = layer.get("kind")
        if kind == "dense":
            into, out = _product(size), read_size(layer, "size")
            weight = weights.take(f"{name}.weight", (out, into), torch.float32)
            bias = weights.take(f"{name}.bias", (out,), torch.float32)
            return lambda x: functional.linear(x.flatten(1), weight, bias), [out]
        if len(size) != 3:
            raise ModelLoadError(f"config.json: {name} follows a dense layer")
        if kind == "pool":
            pool = read_size(layer, "size", high=min(size[1:]))
            return lambda x: functional.max_pool2d(x, pool), [
                size[0],
                size[1] // pool,
                size[2] // pool,
            ]
        if kind != "conv":
            raise ModelLoadError(f"config.json: {name} is neither conv, pool nor dense")
        out, kernel = read_size(layer, "channels"), read_size(layer, "kernel", high=32)
        padding = read_size(layer, "padding", low=0, high=kernel)
        weight = weights.take(f"{name}.weight", (out, size[0], kernel, kernel), torch.float32)
        bias = weights.take(f"{name}.bias", (out,), torch.float32)
        grown = [side + 2 * padding - kernel + 1 for side in size[1:]]
        if min(grown) < 1:
            raise ModelLoadError(f"config.json: {name} leaves nothing of its input")
        return lambda x: functional.conv2d(x, weight, bias, padding=padding), [out, *grown]

    def compute(self, samples: Tensor) -> Tensor:
        mean, scale = self._scaler
        x = (samples - mean) / scale
        last = len(self._layers) - 1
        for number, layer in enumerate(self._layers):
            x = layer(x)
            if self._weighted[number] and number != last:
                x = self._activation(x)
        return x


ARCHITECTURES: Mapping[str, Callable[[Mapping[str, Any], Weights, Sequence[int]], TensorModel]] = {
    "TensorPerceptron": Perceptron,
    "TensorTrees": Trees,
    "TensorConvolutions": Convolutions,
    "TensorForecaster": Forecaster,
}


def read_size(plain: Mapping[str, Any], key: str, *, low: int = 1, high: int = SIZE_MAX) -> int:
    value = plain.get(key)
    if type(value) is not int or not low <= value <= high:
        raise ModelLoadError(f"config.json: {key} is missing or out of range")
    return value


def _sizes(plain: Mapping[str, Any], key: str) -> list[int]:
    values = plain.get(key)
    if not isinstance(values, list) or not 2 <= len(values) <= _LAYERS_MAX:
        raise ModelLoadError(f"config.json: {key} is missing, too short or too long")
    return [read_size({key: value}, key) for value in values]


def _activation(config: Mapping[str, Any]) -> Callable[[Tensor], Tensor]:
    name = config.get("activation", "relu")
    if name not in _ACTIVATIONS:
        raise ModelLoadError(f"config.json: the activation is none of {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def _scaler(weights: Weights, size: int) -> tuple[Tensor, Tensor]:
    """What is taken off every input, and what it is divided by."""
    if "scaler.mean" not in weights:
        return weights.zeros(size), weights.zeros(size) + 1
    mean = weights.take("scaler.mean", (size,), torch.float32)
    return mean, _positive(weights.take("scaler.scale", (size,), torch.float32))


def _positive(scale: Tensor) -> Tensor:
    if not bool((scale > 0).all()):
        raise ModelLoadError("a scale among the weights is not above 0")
    return scale


def _one_dimension(weights: Weights, name: str) -> tuple[int, ...]:
    shape = weights.shape(name)
    if len(shape) != 1 or not 0 < shape[0] <= SIZE_MAX:
        raise ModelLoadError(f"{name} is not a list of numbers")
    return shape


def _within(weights: Weights, name: str, shape: Sequence[int], *, below: int) -> Tensor:
    tensor = weights.take(name, shape, torch.long)
    if not bool(((tensor >= 0) & (tensor < below)).all()):
        raise ModelLoadError(f"{name} points beyond what there is")
    return tensor


def _product(sizes: Sequence[int]) -> int:
    return int(torch.Size(sizes).numel())
