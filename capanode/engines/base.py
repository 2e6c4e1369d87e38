"""The one interface between a worker's loop and whatever computes.

An engine is synchronous and single-threaded: the worker submits and cancels jobs between steps and
hands on the events that a step returns. It never sees the network, a key, a price or a client.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from protocol.errors import CapaError, Code
from protocol.generation import GenerationInput
from protocol.messages import Task
from protocol.payload import EmbeddingInput, ImageInput
from protocol.pricing import Units
from protocol.tensors import ModelSignature, TensorInput


class ReadInput(Protocol):
    """An input that an engine has read ahead, by its `slow_reading`."""

    @property
    def job_input(self) -> GenerationInput: ...


EngineInput = GenerationInput | EmbeddingInput | ImageInput | TensorInput | ReadInput


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What a loaded engine can do, as measured or read from the model; goes into the offer."""

    task: Task
    slots: int  # jobs that one step advances together
    context_tokens: int  # 0 where the notion does not apply
    quantization: str
    # What computes, as receipts state it: see `capanode.engines.profile`.
    profile: str = ""
    # Words of `protocol.features.Feature`, and a name of `protocol.chat_formats`.
    features: tuple[str, ...] = ()
    chat_format: str = ""
    # What a tensor model takes and answers.
    signature: ModelSignature | None = None
    # How many numbers an embedding has.
    dimensions: int = 0


@dataclass(frozen=True, slots=True)
class Started:
    """The input was parsed and counted; the job holds a slot from here on. `input_digest` is
    `protocol.payload.tokens_digest` of what was read, empty where the input has no tokens;
    `prefix_tokens` of them were answered elsewhere before."""

    job_id: str
    input_units: Units
    input_digest: str = ""
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Produced:
    """A piece of the answer. `text` is what these token ids add to the visible answer; `data` is
    the encoded output of tasks that answer all at once."""

    job_id: str
    token_ids: tuple[int, ...]
    text: str
    data: bytes = b""


@dataclass(frozen=True, slots=True)
class Completed:
    """The job ended as it should; `reason` is `stop`, `length` or `complete`. `end_token` is the
    end-of-text token that ended it, which is neither delivered nor metered, `end_stop` the index of
    the stop string that did."""

    job_id: str
    reason: str
    units: Units
    end_token: int | None = None
    end_stop: int | None = None


@dataclass(frozen=True, slots=True)
class Failed:
    """The job ended without an answer; the slot is free. `units` is what it had delivered."""

    job_id: str
    code: Code
    message: str
    units: Units


EngineEvent = Started | Produced | Completed | Failed


class ModelLoadError(CapaError):
    """The model's directory is damaged, incomplete, or describes something that no engine runs."""


class EngineRefusal(CapaError):
    """The input cannot be run (too long, not an image, ...); `code` is what the client gets.

    The message reaches logs, so it must not quote an input: it is a sentence of ours into which
    only numbers are filled.
    """

    def __init__(self, sentence: str, *, code: Code, **numbers: int) -> None:
        assert all(type(number) is int for number in numbers.values()), "numbers only"
        super().__init__(sentence.format(**numbers))
        self.code = code


class Engine(Protocol):
    """Runs many jobs at once; see the module docstring for who calls what."""

    @property
    def info(self) -> EngineInfo: ...

    @property
    def is_idle(self) -> bool:
        """True if `step` would do nothing."""
        ...

    def slow_reading(self, job_input: EngineInput) -> Callable[[], EngineInput] | None:
        """What is to be done before `submit` where reading an input takes long: to be called on any
        thread, gives what to submit instead and raises what `submit` would. None for most."""
        ...

    def submit(self, job_id: str, job_input: EngineInput) -> None:
        """Queue a job for the next step. Raises EngineRefusal; nothing is kept then."""
        ...

    def cancel(self, job_id: str) -> None:
        """Free the job's slot at once; unknown ids are ignored (the job may just have ended)."""
        ...

    def step(self) -> Sequence[EngineEvent]:
        """Advance every live job by one step and return what happened, in order per job."""
        ...
