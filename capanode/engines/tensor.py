"""Tensor models: numbers in, numbers out. The rows of all waiting jobs are computed together.

They run where the node's other models do, on its GPU if it has one: the receipt's profile says so.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from capanode.engines.base import (
    Completed,
    EngineEvent,
    EngineInfo,
    EngineInput,
    EngineRefusal,
    ModelLoadError,
    Produced,
    Started,
)
from capanode.engines.profile import TENSOR, Profile, device_class
from capanode.engines.tensor_config import (
    OutputHead,
    Outputs,
    read_head,
    read_metadata,
    row_shape,
)
from capanode.engines.tensor_export import ExportedProgram
from capanode.engines.tensor_models import ARCHITECTURES, TensorModel
from capanode.engines.weights import Weights, read_json
from protocol.codec import encode
from protocol.errors import Code
from protocol.limits import OUTPUT_BYTES_MAX, TENSOR_STRINGS_MAX
from protocol.messages import Task
from protocol.pricing import Units
from protocol.tensors import (
    ARRAY_TYPES,
    Datatype,
    NamedTensor,
    TensorInput,
    TensorOutput,
)

# As `capanode.tasks` names it.
EXPORT_ARCHITECTURE = "TensorExport"

# Numbers that one step works on: 64 MiB of float32.
_STEP_FLOATS = 16 * 1024 * 1024
_STEP_ROWS_MAX = 16_384
# Names and shapes of an answer, around its numbers.
_OVERHEAD_BYTES = 64 * 1024


@dataclass(slots=True)
class _Job:
    job_id: str
    samples: Tensor
    wanted: tuple[str, ...]
    units: Units
    done: int = 0
    parts: list[Outputs] = field(default_factory=list)


class TensorEngine:
    """An Engine for tensor models."""

    def __init__(
        self,
        model: TensorModel,
        head: OutputHead,
        *,
        slots: int,
        rows_max: int,
        device: torch.device,
    ) -> None:
        self._model, self._head, self._device = model, head, device
        self._rows_max = rows_max
        self._jobs: dict[str, _Job] = {}
        profile = Profile(
            engine=TENSOR, weights="fp32", compute="fp32", device=device_class(device)
        )
        self._info = EngineInfo(
            task=Task.TENSOR,
            slots=slots,
            context_tokens=0,
            quantization="fp32",
            profile=str(profile),
            signature=head.signature,
        )

    @classmethod
    def load(
        cls, model_dir: Path, *, slots: int, threads: int, device: str | torch.device = "cpu"
    ) -> "TensorEngine":
        """Raises ModelLoadError if the directory does not hold a model that runs here."""
        torch.set_num_threads(threads)
        device = torch.device(device)
        # Convolutions would else be computed in ten bits of fraction there, and the profile says
        # float32.
        torch.backends.cudnn.allow_tf32 = False
        config = read_json(model_dir / "config.json")
        inputs = read_metadata(config, "inputs")
        shape = row_shape(inputs)
        with torch.inference_mode():
            model = _build(config, model_dir, shape, device)
        head = read_head(config, inputs, model)
        rows_max = (OUTPUT_BYTES_MAX - _OVERHEAD_BYTES) // max(head.row_bytes(), 1)
        if any(output.datatype is Datatype.BYTES for output in head.signature.outputs):
            rows_max = min(rows_max, TENSOR_STRINGS_MAX)
        return cls(model, head, slots=slots, rows_max=rows_max, device=device)

    @property
    def info(self) -> EngineInfo:
        return self._info

    @property
    def is_idle(self) -> bool:
        return not self._jobs

    def slow_reading(self, job_input: EngineInput) -> None:
        """See `Engine.slow_reading`: all inputs are read by `submit`."""

    def submit(self, job_id: str, job_input: EngineInput) -> None:
        """Raises EngineRefusal: INVALID_INPUT or INPUT_TOO_LARGE."""
        if not isinstance(job_input, TensorInput):
            raise EngineRefusal("this model takes tensors", code=Code.INVALID_INPUT)
        assert job_id not in self._jobs, "the parent names each job once"
        names = {output.name for output in self._head.signature.outputs}
        if not names.issuperset(job_input.outputs):
            raise EngineRefusal(
                "an output that is asked for does not exist", code=Code.INVALID_INPUT
            )
        context_max = max(self._model.window_rows - 1, 0)
        if job_input.context_rows > context_max:
            raise EngineRefusal(
                "the model looks at {limit} rows before a row, not {rows}",
                code=Code.INVALID_INPUT,
                limit=context_max,
                rows=job_input.context_rows,
            )
        rows = self._read_rows(job_input)
        if len(rows) - job_input.context_rows > self._rows_max:
            raise EngineRefusal(
                "the answers to {rows} rows do not fit into one; {limit} do",
                code=Code.INPUT_TOO_LARGE,
                rows=len(rows),
                limit=self._rows_max,
            )
        samples = self._model.samples(rows, context_rows=job_input.context_rows)
        units = Units(tensor_elements=job_input.elements)
        self._jobs[job_id] = _Job(job_id, samples, job_input.outputs, units)

    def _read_rows(self, job_input: TensorInput) -> Tensor:
        """All inputs as one tensor of float32. Raises EngineRefusal."""
        given = {tensor.name: tensor for tensor in job_input.inputs}
        wanted = self._head.signature.inputs
        if given.keys() != {tensor.name for tensor in wanted}:
            raise EngineRefusal("the inputs are not those of the model", code=Code.INVALID_INPUT)
        columns = []
        for number, expected in enumerate(wanted):
            tensor = given[expected.name]
            if tensor.datatype is not expected.datatype or not expected.fits(tensor.shape):
                raise EngineRefusal(
                    "input {number} does not have the model's datatype and shape",
                    code=Code.INVALID_INPUT,
                    number=number,
                )
            columns.append(torch.from_numpy(_numbers(tensor)))
        if len({len(column) for column in columns}) != 1:
            raise EngineRefusal("the inputs differ in their rows", code=Code.INVALID_INPUT)
        return columns[0] if len(columns) == 1 else torch.cat(columns, 1)

    def cancel(self, job_id: str) -> None:
        self._jobs.pop(job_id, None)

    def step(self) -> Sequence[EngineEvent]:
        """A share of each live job's rows, all in one batch."""
        jobs = list(islice(self._jobs.values(), self._info.slots))
        if not jobs:
            return []
        room = max(len(jobs), min(_STEP_FLOATS // self._model.floats, _STEP_ROWS_MAX))
        share = room // len(jobs)
        taken = [job.samples[job.done : job.done + share] for job in jobs]
        with torch.inference_mode():
            made = self._head.outputs(self._model.compute(torch.cat(taken).to(self._device)))
        events: list[EngineEvent] = []
        at = 0
        for job, samples in zip(jobs, taken, strict=True):
            if not job.done:
                events.append(Started(job.job_id, job.units))
            end = at + len(samples)
            job.parts.append({name: numbers[at:end] for name, numbers in made.items()})
            at = end
            job.done += len(samples)
            if job.done == len(job.samples):
                del self._jobs[job.job_id]
                events.append(Produced(job.job_id, (), "", encode(self._answer(job))))
                events.append(Completed(job.job_id, "complete", job.units))
        return events

    def _answer(self, job: _Job) -> TensorOutput:
        by_name = {output.name: output for output in self._head.signature.outputs}
        wanted = job.wanted or tuple(by_name)
        return TensorOutput(tuple(self._head.tensor(by_name[name], job.parts) for name in wanted))


def _build(
    config: Mapping[str, Any], model_dir: Path, shape: Sequence[int], device: torch.device
) -> TensorModel:
    """Raises ModelLoadError."""
    name = next(iter(config.get("architectures") or ("none",)))
    if name == EXPORT_ARCHITECTURE:
        return ExportedProgram(config, model_dir, shape, device)
    build = ARCHITECTURES.get(name)
    if build is None:
        raise ModelLoadError(f"architecture {str(name)[:64]!r} is run by no engine here")
    return build(config, Weights(model_dir, device=device), shape)


def _numbers(tensor: NamedTensor) -> npt.NDArray[np.float32]:
    if tensor.datatype is Datatype.BF16:
        # The upper half of a float32.
        halves = np.frombuffer(tensor.data, "<u2").astype(np.uint32)
        numbers = (halves << 16).view(np.float32)
    else:
        numbers = np.frombuffer(tensor.data, ARRAY_TYPES[tensor.datatype])
        # A float64 beyond float32's range becomes infinite, and that is said by the answer.
        with np.errstate(over="ignore"):
            numbers = numbers.astype(np.float32)
    return numbers.reshape(tensor.shape)
