"""A program of `torch.export` as a tensor model: `model.pt2`, whose loading runs code of its
maker. Only nodes with `allow_code_models` plan such a model, and only this module loads one,
inside the sandbox.

config.json says what goes in and out as for other tensor models, and in `width` how many numbers
the program makes of a row. The program takes one tensor of float32 [rows, …], all inputs joined.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from capanode.engines.base import ModelLoadError
from capanode.engines.tensor_models import RowModel, read_size

PROGRAM_FILE = "model.pt2"

# A program for any number of rows is given no more at once.
_ROWS_MAX = 4_096


class ExportedProgram(RowModel):
    """Runs the program with as many rows as it was exported for."""

    def __init__(
        self,
        config: Mapping[str, Any],
        model_dir: Path,
        shape: Sequence[int],
        device: torch.device,
    ) -> None:
        """Raises ModelLoadError if the program does not take what config.json says."""
        self.width = read_size(config, "width")
        try:
            program = torch.export.load(model_dir / PROGRAM_FILE)
            given = _input_of(program)
            if tuple(given.shape[1:]) != tuple(shape):
                raise ValueError(f"it takes rows of {list(given.shape[1:])}")
            self._least, self._most = _rows_of(program, given)
            self.floats = _floats_of(program, given)
            self._run = program.module().to(device)
            made = self.compute(torch.zeros((2, *shape), device=device))
        # Whatever a program raises, the operator is told in words: no client has sent anything yet.
        except Exception as error:
            raise ModelLoadError(
                f"{PROGRAM_FILE} does not run: {type(error).__name__}: {str(error)[:200]}"
            ) from error
        if made.shape != (2, self.width) or made.dtype != torch.float32:
            raise ModelLoadError(
                f"{PROGRAM_FILE} makes {made.dtype} of {list(made.shape)} from two rows, not "
                f"{self.width} numbers of float32 each"
            )

    def compute(self, samples: Tensor) -> Tensor:
        made = []
        for part in torch.split(samples, self._most):
            missing = max(0, self._least - len(part))
            padding = part.new_zeros((missing, *part.shape[1:]))
            made.append(self._run(torch.cat((part, padding)))[: len(part)])
        return torch.cat(made)


def _input_of(program: torch.export.ExportedProgram) -> Tensor:
    """What it takes, without numbers. Raises ValueError."""
    names = program.graph_signature.user_inputs
    values = [node.meta.get("val") for node in program.graph.nodes if node.name in names]
    if len(values) != 1 or not isinstance(values[0], Tensor):
        raise ValueError("it does not take one tensor")
    if values[0].dtype != torch.float32 or not values[0].ndim:
        raise ValueError("it does not take rows of float32")
    return values[0]


def _rows_of(program: torch.export.ExportedProgram, given: Tensor) -> tuple[int, int]:
    """The fewest and the most rows that it takes at once."""
    rows: Any = given.shape[0]  # A number, or the symbol for any.
    if isinstance(rows, int):
        return rows, rows
    bounds = program.range_constraints.get(rows.node.expr)
    if bounds is None:
        return 1, _ROWS_MAX
    return max(1, int(bounds.lower)), int(min(bounds.upper, _ROWS_MAX))


def _floats_of(program: torch.export.ExportedProgram, given: Tensor) -> int:
    """The most numbers of a row that it holds at a time, as far as its steps tell: each may need
    what came before it."""
    rows = given.shape[0]
    numbers = [math.prod(size for size in given.shape[1:] if isinstance(size, int))]
    for node in program.graph.nodes:
        value = node.meta.get("val")
        if node.op == "call_function" and isinstance(value, Tensor):
            sizes = [size for size in value.shape if isinstance(size, int)]
            shared = rows if isinstance(rows, int) else 1
            numbers.append(max(1, math.prod(sizes) // shared))
    return 2 * max(numbers)
