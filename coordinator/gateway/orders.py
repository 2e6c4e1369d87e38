"""From a parsed request to a job, once the model that it names is looked up."""

from dataclasses import dataclass, replace
from typing import ClassVar

from coordinator.buyer.spec import JobSpec
from coordinator.buyer.units import units_of
from coordinator.gateway.caller import Caller
from coordinator.gateway.errors import error_of
from coordinator.gateway.market_side.market import ModelInfo
from protocol.errors import Code
from protocol.grants import Payer
from protocol.limits import PAYLOAD_BYTES_MAX
from protocol.messages import Constraints, Objective, Task
from protocol.payload import GenerationInput, JobInput
from protocol.pricing import Units

# An answer's length where the request sets none. All of it is held until the answer has ended.
OUTPUT_TOKENS_DEFAULT = 1_024

# Keys and lengths of the encoded input, around its texts.
_PAYLOAD_OVERHEAD_BYTES = 64 * 1_024


@dataclass(frozen=True, slots=True)
class Routing:
    """Where a job may run, and what matters."""

    model: str
    objective: Objective
    constraints: Constraints


@dataclass(frozen=True, slots=True)
class GenerationOrder:
    """`has_max_tokens` is False if the answer's length is ours to choose. `input_bytes` is the size
    of the text that is kept while the job runs."""

    task: ClassVar[Task] = Task.CAUSAL_LM
    # The node counted more tokens than the context leaves beside the answer.
    too_large_code: ClassVar[Code] = Code.PROMPT_TOO_LONG

    routing: Routing
    job_input: GenerationInput
    has_max_tokens: bool
    input_bytes: int

    @property
    def input_param(self) -> str:
        return "messages" if self.job_input.messages else "prompt"

    def to_spec(self, caller: Caller, model: ModelInfo | None, *, deadline_s: float) -> JobSpec:
        """Raises ApiError if it cannot fit into the model's context."""
        job_input = self.job_input
        units_max, expected = units_of(job_input)
        context = model.context_tokens if model is not None else 0
        if context:
            room = context - expected.input_tokens
            if not self.has_max_tokens and 0 < room < job_input.max_tokens:
                job_input = replace(job_input, max_tokens=room)
                units_max, expected = units_of(job_input)
            if job_input.max_tokens > room:
                raise error_of(
                    Code.PROMPT_TOO_LONG,
                    f"this model takes {context} tokens: about {expected.input_tokens} of "
                    f"{self.input_param} and {job_input.max_tokens} of answer are too many",
                    input_param=self.input_param,
                )
            # The node cuts a longer answer to what its context leaves, and refuses a longer prompt.
            units_max = replace(units_max, input_tokens=min(units_max.input_tokens, context))
        return _spec(self, job_input, (units_max, expected), caller, deadline_s)


@dataclass(frozen=True, slots=True)
class PlainOrder:
    """A job whose input is sent as it is. `input_param` is the request's field with the input,
    `input_bytes` the size of what is kept while the job runs."""

    task: Task
    input_param: str
    routing: Routing
    job_input: JobInput
    input_bytes: int

    too_large_code: ClassVar[Code] = Code.INPUT_TOO_LARGE

    def to_spec(self, caller: Caller, model: ModelInfo | None, *, deadline_s: float) -> JobSpec:
        return _spec(self, self.job_input, units_of(self.job_input), caller, deadline_s)


Order = GenerationOrder | PlainOrder


def check_text_size(size: int, param: str) -> None:
    """Raises ApiError (413) if so many bytes of text cannot travel as one job's input."""
    limit = PAYLOAD_BYTES_MAX - _PAYLOAD_OVERHEAD_BYTES
    if size > limit:
        raise error_of(
            Code.INPUT_TOO_LARGE,
            f"{param} has {size} bytes; one request takes {limit}",
            input_param=param,
        )


def _spec(
    order: Order,
    job_input: JobInput,
    units: tuple[Units, Units],
    caller: Caller,
    deadline_s: float,
) -> JobSpec:
    units_max, units_expected = units
    return JobSpec(
        model=order.routing.model,
        task=order.task,
        job_input=job_input,
        units_max=units_max,
        units_expected=units_expected,
        objective=order.routing.objective,
        constraints=order.routing.constraints,
        deadline_s=deadline_s,
        payer=Payer(caller.key_id, caller.remaining_nano),
    )
