"""config.json of a tensor model: what goes in and out, and what is made of the model's numbers.

    "inputs":  [{"name", "datatype", "shape": [-1, …]}]; several are joined, number after number
    "outputs": [{"name", "datatype", "shape", "kind"}]; kind is `values` (the model's own numbers),
               `scores` (after `link`: `softmax`, `sigmoid` or `identity`), `class` (the number of
               the best score) or `label` (its name in `classes`)

The first dimension is that of rows, and of any size.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from capanode.engines.base import ModelLoadError
from capanode.engines.tensor_models import TensorModel
from protocol.limits import NAME_CHARS_MAX
from protocol.tensors import (
    ELEMENT_BYTES,
    Datatype,
    ModelSignature,
    NamedTensor,
    TensorMetadata,
    join_strings,
)

_LINKS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda values: values,
    "softmax": lambda values: values.softmax(-1),
    # Of one number a sigmoid makes the scores of two classes.
    "sigmoid": lambda values: (
        torch.cat((torch.sigmoid(-values), torch.sigmoid(values)), -1)
        if values.shape[1] == 1
        else torch.sigmoid(values)
    ),
}
# The datatype of each kind of output, and whether it has one number per class.
_KINDS = {
    "values": (Datatype.FP32, True),
    "scores": (Datatype.FP32, True),
    "class": (Datatype.INT64, False),
    "label": (Datatype.BYTES, False),
}

Outputs = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class OutputHead:
    """What is made of a model's numbers."""

    signature: ModelSignature
    kinds: Mapping[str, str]
    link: Callable[[Tensor], Tensor]
    classes: tuple[bytes, ...]

    def outputs(self, values: Tensor) -> Outputs:
        values = values.cpu()
        scores = self.link(values)
        best = scores.argmax(-1).numpy()
        made: Mapping[str, Callable[[], npt.NDArray[Any]]] = {
            "values": lambda: values.numpy().astype("<f4"),
            "scores": lambda: scores.numpy().astype("<f4"),
            "class": lambda: best.astype("<i8"),
            "label": lambda: best,
        }
        return {output.name: made[self.kinds[output.name]]() for output in self.signature.outputs}

    def tensor(self, output: TensorMetadata, parts: Sequence[Outputs]) -> NamedTensor:
        rows = np.concatenate([part[output.name] for part in parts])
        data = rows.tobytes()
        if output.datatype is Datatype.BYTES:
            data = join_strings(self.classes[place] for place in rows)
        return NamedTensor(output.name, output.datatype, rows.shape, data)

    def row_bytes(self) -> int:
        """The most that a row of all outputs takes."""
        longest = 4 + max(map(len, self.classes), default=0)
        return sum(
            longest
            if output.datatype is Datatype.BYTES
            else ELEMENT_BYTES[output.datatype] * int(np.prod(output.shape[1:], dtype=np.int64))
            for output in self.signature.outputs
        )


def read_metadata(config: Mapping[str, Any], key: str) -> tuple[TensorMetadata, ...]:
    """Raises ModelLoadError."""
    listed = config.get(key)
    if not isinstance(listed, list):
        raise ModelLoadError(f"config.json: {key} is no list")
    try:
        return tuple(
            TensorMetadata(str(t["name"]), Datatype(t["datatype"]), tuple(map(int, t["shape"])))
            for t in listed
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ModelLoadError(f"config.json: {key}: {error}") from None


def row_shape(inputs: Sequence[TensorMetadata]) -> tuple[int, ...]:
    """The shape of a row of all inputs together. Raises ModelLoadError."""
    for tensor in inputs:
        if tensor.datatype is Datatype.BYTES:
            raise ModelLoadError(f"config.json: input {tensor.name} is of BYTES, not of numbers")
        if len(tensor.shape) < 2 or tensor.shape[0] != -1 or -1 in tensor.shape[1:]:
            raise ModelLoadError(
                f"config.json: input {tensor.name} needs a shape of -1 and the sizes of a row"
            )
    if len(inputs) == 1:
        return inputs[0].shape[1:]
    if not inputs or any(len(tensor.shape) != 2 for tensor in inputs):
        raise ModelLoadError("config.json: several inputs need rows of numbers each")
    return (sum(tensor.shape[1] for tensor in inputs),)


def read_head(
    config: Mapping[str, Any], inputs: tuple[TensorMetadata, ...], model: TensorModel
) -> OutputHead:
    """Raises ModelLoadError."""
    outputs = read_metadata(config, "outputs")
    kinds = {
        output.name: str(plain.get("kind"))
        for output, plain in zip(outputs, config["outputs"], strict=True)
    }
    link = config.get("link", "identity")
    if link not in _LINKS:
        raise ModelLoadError(f"config.json: link is none of {', '.join(_LINKS)}")
    labels = config.get("classes", [])
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ModelLoadError("config.json: classes is not a list of names")
    classes = tuple(label.encode() for label in labels)
    scores = _LINKS[link](torch.zeros((1, model.width))).shape[1]
    if any(len(label) > NAME_CHARS_MAX for label in classes) or len(classes) not in (0, scores):
        raise ModelLoadError(f"config.json: classes does not name {scores} of them, shortly")
    for output in outputs:
        kind = kinds[output.name]
        if kind not in _KINDS or (kind == "label" and not classes):
            raise ModelLoadError(
                f"config.json: output {output.name} is of no kind, or has no names"
            )
        datatype, is_wide = _KINDS[kind]
        width = model.width if kind == "values" else scores
        if output.datatype is not datatype or output.shape != ((-1, width) if is_wide else (-1,)):
            raise ModelLoadError(
                f"config.json: output {output.name} is {datatype} of "
                f"{[-1, width] if is_wide else [-1]}"
            )
    try:
        signature = ModelSignature(inputs, outputs, model.window_rows)
    except ValueError as error:
        raise ModelLoadError(f"config.json: {error}") from None
    return OutputHead(signature, kinds, _LINKS[link], classes)
