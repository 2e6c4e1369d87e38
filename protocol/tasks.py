"""What both sides know of each task, in one table: its input, how its answer comes, what is metered
and priced. A task is added here, and in the table of each package that serves or sells it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from protocol.codec import decode
from protocol.errors import Code, RemoteProtocolError
from protocol.generation import GenerationInput
from protocol.messages import Task
from protocol.payload import EmbeddingInput, ImageInput, JobInput
from protocol.tensors import TensorInput


@dataclass(frozen=True, slots=True)
class TaskSpec:
    """One task on the wire."""

    input_type: type[JobInput]
    # An answer that is streamed token by token; others come in one piece.
    is_stream: bool
    # The fields of Units that this task counts.
    units: tuple[str, ...]
    # The names of the price positions that a node proposes for it; `request` may be asked of all.
    prices: tuple[str, ...]
    # Whether a node may answer with less work where inputs begin alike: see `Units.cached_tokens`.
    reuses_input: bool = False


TASKS: Mapping[Task, TaskSpec] = {
    Task.CAUSAL_LM: TaskSpec(
        input_type=GenerationInput,
        is_stream=True,
        units=("input_tokens", "output_tokens"),
        prices=("input_per_mtok", "output_per_mtok"),
        reuses_input=True,
    ),
    Task.EMBEDDING: TaskSpec(
        input_type=EmbeddingInput,
        is_stream=False,
        units=("input_tokens",),
        prices=("input_per_mtok",),
    ),
    Task.IMAGE_CLASSIFICATION: TaskSpec(
        input_type=ImageInput, is_stream=False, units=("images",), prices=("image",)
    ),
    Task.TENSOR: TaskSpec(
        input_type=TensorInput,
        is_stream=False,
        units=("tensor_elements",),
        prices=("tensor_per_kelement",),
    ),
}


def decode_input(task: Task, payload: bytes) -> JobInput:
    """Raises RemoteProtocolError (INVALID_INPUT) if the payload is not an input for this task: the
    frames that brought it are in order, so that it is not `malformed`."""
    try:
        return decode(TASKS[task].input_type, payload)
    except RemoteProtocolError as error:
        raise RemoteProtocolError(str(error), code=Code.INVALID_INPUT) from None
