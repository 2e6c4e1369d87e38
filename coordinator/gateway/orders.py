"""From a parsed request to a job, once the model that it names is looked up."""

import hashlib
from dataclasses import dataclass, replace
from typing import ClassVar

from coordinator.buyer.spec import Continuation, JobSpec
from coordinator.buyer.units import units_of
from coordinator.gateway.caller import Caller
from coordinator.gateway.chat.features import check_features, features_of
from coordinator.gateway.errors import ApiError, error_of, invalid, unsupported
from coordinator.gateway.market_side.market import ModelInfo
from protocol.errors import Code
from protocol.features import Feature
from protocol.generation import SEED_MAX, GenerationInput, ToolChoice
from protocol.grants import Payer
from protocol.limits import PAYLOAD_BYTES_MAX
from protocol.messages import Constraints, Objective, Task
from protocol.payload import EmbeddingInput, JobInput
from protocol.pricing import Units

# An answer's length where the request sets none. All of it is held until the answer has ended.
OUTPUT_TOKENS_DEFAULT = 1_024

# No text has more bytes than this for each of its tokens, over a whole context.
_BYTES_PER_TOKEN_MAX = 32

_NAMES = {
    Task.CAUSAL_LM: "text generation",
    Task.EMBEDDING: "embeddings",
    Task.IMAGE_CLASSIFICATION: "image classification",
    Task.TENSOR: "tensors",
}

# A reference in a tuple; the numbers themselves come on top.
_TOKEN_BYTES = 8

# Keys and lengths of the encoded input, around its texts.
_PAYLOAD_OVERHEAD_BYTES = 64 * 1_024


@dataclass(frozen=True, slots=True)
class Routing:
    """Where a job may run, and what matters. `fallbacks` are tried in their order where no node
    takes the job; they have none of their own."""

    model: str
    objective: Objective
    constraints: Constraints
    session: str = ""
    hedge: bool = False
    continuation: Continuation = Continuation.CONTINUE
    fallbacks: tuple["Routing", ...] = ()


@dataclass(frozen=True, slots=True)
class GenerationOrder:
    """`input_bytes` is the size of the text, or of the tokens, that is kept while the job runs."""

    task: ClassVar[Task] = Task.CAUSAL_LM
    # The node counted more tokens than the context leaves beside the answer.
    too_large_code: ClassVar[Code] = Code.PROMPT_TOO_LONG

    routing: Routing
    job_input: GenerationInput
    input_bytes: int

    @property
    def input_param(self) -> str:
        return "messages" if self.job_input.messages else "prompt"

    def param_at_fault(self, code: Code) -> str:
        """What a node cannot read, beside a text, is a form that it shall enforce."""
        if code is Code.INVALID_INPUT and self.job_input.format is not None:
            return "response_format"
        is_called = self.job_input.tool_choice is ToolChoice.REQUIRED
        return "tools" if code is Code.INVALID_INPUT and is_called else self.input_param

    def to_spec(self, caller: Caller, model: ModelInfo | None, *, deadline_s: float) -> JobSpec:
        """Raises ApiError if the model does other things, or cannot take so long a prompt.

        Only the node counts the tokens of a text. It refuses a prompt that is too long, and ends
        the answer where its context is full; so a limit that no context can hold is lowered, and
        a guess refuses nothing.
        """
        _check_task(self, model)
        job_input = self.job_input
        if model is not None:
            check_features(job_input, model.name, model.features)
        context = model.context_tokens if model is not None else 0
        # What a text is in tokens can be told of any text.
        if not context or job_input.tokenizes_only:
            return _spec(self, job_input, units_of(job_input), caller, deadline_s)
        if self._tokens_min() >= context:
            raise _too_long(self, context)
        if job_input.max_tokens >= context:
            job_input = replace(job_input, max_tokens=context - 1)
        units_max, expected = units_of(job_input)
        room = context - job_input.max_tokens
        # What the whole context bounds need not be held.
        units = (_with_input_up_to(context, units_max), _with_input_up_to(room, expected))
        return _spec(self, job_input, units, caller, deadline_s)

    def _tokens_min(self) -> int:
        """What the prompt has for certain."""
        chars = sum(len(message.content) for message in self.job_input.messages)
        chars += len(self.job_input.prompt or "")
        return len(self.job_input.prompt_tokens) or chars // _BYTES_PER_TOKEN_MAX


@dataclass(frozen=True, slots=True)
class PlainOrder:
    """A job whose input is sent as it is, or as `paired_input` to a model that scores pairs of
    texts. `input_param` is the request's field with the input, `input_bytes` the size of what is
    kept while the job runs, `dimensions` how long embeddings must be."""

    task: Task
    input_param: str
    routing: Routing
    job_input: JobInput
    input_bytes: int
    dimensions: int | None = None
    paired_input: EmbeddingInput | None = None

    too_large_code: ClassVar[Code] = Code.INPUT_TOO_LARGE

    def to_spec(self, caller: Caller, model: ModelInfo | None, *, deadline_s: float) -> JobSpec:
        """Raises ApiError if the model does other things, or has vectors of another length."""
        _check_task(self, model)
        if self.dimensions is not None and model is not None:
            _check_dimensions(self.dimensions, model)
        job_input = self._input_for(model)
        return _spec(self, job_input, units_of(job_input), caller, deadline_s)

    def _input_for(self, model: ModelInfo | None) -> JobInput:
        """Raises ApiError."""
        if model is None or Feature.PAIR_SCORES not in model.features:
            return self.job_input
        if self.paired_input is None:
            raise invalid(
                f"{model.name} scores documents against a query, and embeds nothing: ask it at "
                "/v1/rerank",
                "model",
                code="wrong_task",
            )
        return self.paired_input


Order = GenerationOrder | PlainOrder


def _with_input_up_to(tokens: int, units: Units) -> Units:
    return units if units.input_tokens <= tokens else replace(units, input_tokens=tokens)


def _check_task(order: Order, model: ModelInfo | None) -> None:
    if model is not None and model.task is not order.task:
        raise invalid(
            f"{model.name} is a model for {_NAMES[model.task]}, not for {_NAMES[order.task]}",
            "model",
            code="wrong_task",
        )


def _check_dimensions(dimensions: int, model: ModelInfo) -> None:
    """No offer says that a model was trained to be cut short."""
    if not model.dimensions:
        raise unsupported(
            f"it is not known how many dimensions {model.name} has: leave dimensions out",
            "dimensions",
        )
    if dimensions != model.dimensions:
        raise unsupported(
            f"{model.name} has {model.dimensions} dimensions, and does not support others",
            "dimensions",
        )


def _too_long(order: GenerationOrder, context_tokens: int) -> ApiError:
    return error_of(
        Code.PROMPT_TOO_LONG,
        f"this model's maximum context length is {context_tokens} tokens, and {order.input_param} "
        "has more",
        input_param=order.input_param,
    )


def with_choices(order: GenerationOrder, choices: int) -> tuple[GenerationOrder, ...]:
    """An order for each of several answers: with a seed, each has the next one."""
    seed = order.job_input.seed
    if choices == 1 or seed is None:
        return (order,) * choices
    seeds = [(seed + number) % (SEED_MAX + 1) for number in range(choices)]
    return tuple(replace(order, job_input=replace(order.job_input, seed=s)) for s in seeds)


def text_bytes(job_input: GenerationInput) -> int:
    """The size of all texts and tokens of an input."""
    texts = [job_input.prompt or "", job_input.template_arguments]
    if job_input.format is not None:
        texts.append(job_input.format.text)
    for tool in job_input.tools:
        texts += (tool.name, tool.description, tool.parameters)
    for message in job_input.messages:
        texts += (message.content, message.reasoning or "")
        texts += (call.arguments for call in message.tool_calls or ())
    return sum(len(text.encode()) for text in texts) + _TOKEN_BYTES * len(job_input.prompt_tokens)


def check_text_size(size: int, param: str) -> None:
    """Raises ApiError (413) if so many bytes of text cannot travel as one job's input."""
    limit = PAYLOAD_BYTES_MAX - _PAYLOAD_OVERHEAD_BYTES
    if size > limit:
        raise error_of(
            Code.INPUT_TOO_LARGE,
            f"{param} has {size} bytes; one request takes {limit}",
            input_param=param,
        )


def _features_needed(job_input: JobInput) -> tuple[Feature, ...]:
    if isinstance(job_input, GenerationInput):
        return features_of(job_input)
    is_paired = isinstance(job_input, EmbeddingInput) and job_input.query is not None
    return (Feature.PAIR_SCORES,) if is_paired else ()


def _with_own_salt(job_input: GenerationInput, caller: Caller) -> GenerationInput:
    """To nodes all people of one account are one client: their prompts stay apart by a salt."""
    if job_input.shares_cache:
        return job_input
    salt = hashlib.sha256(f"{caller.key_id}\0{job_input.cache_salt}".encode()).hexdigest()
    return replace(job_input, cache_salt=salt)


def _spec(
    order: Order,
    job_input: JobInput,
    units: tuple[Units, Units],
    caller: Caller,
    deadline_s: float,
) -> JobSpec:
    units_max, units_expected = units
    if isinstance(job_input, GenerationInput) and caller.shares_account:
        job_input = _with_own_salt(job_input, caller)
    constraints = order.routing.constraints
    needed = _features_needed(job_input)
    if needed:
        features = (*constraints.features, *needed)
        constraints = replace(constraints, features=tuple(dict.fromkeys(map(str, features))))
    return JobSpec(
        model=order.routing.model,
        task=order.task,
        job_input=job_input,
        units_max=units_max,
        units_expected=units_expected,
        objective=order.routing.objective,
        constraints=constraints,
        deadline_s=deadline_s,
        payer=Payer(caller.key_id),
        session=order.routing.session,
        hedge=order.routing.hedge,
        continuation=order.routing.continuation,
    )
