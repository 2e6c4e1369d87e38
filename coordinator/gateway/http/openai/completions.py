"""POST /v1/completions: prompts as text or as token ids."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.gateway.errors import invalid, unsupported
from coordinator.gateway.http.openai.forms import FormNames, TextForm
from coordinator.gateway.http.openai.generation import GenerationCall
from coordinator.gateway.http.openai.names import NEUTRAL, check_names
from coordinator.gateway.http.openai.sampling import (
    SAMPLING_WORDS,
    read_choices,
    read_sampling,
    read_streaming,
)
from coordinator.gateway.http.routing_params import read_routing
from coordinator.gateway.http.strict_json import Fields, check_text
from coordinator.gateway.orders import GenerationOrder, check_text_size, text_bytes, with_choices
from protocol.generation import TOKEN_ID_MAX, GenerationInput
from protocol.limits import TOKENS_MAX, TOP_LOGPROBS_MAX

# As at OpenAI.
_OUTPUT_TOKENS_DEFAULT = 16

# Each is a job of its own, for each of its answers.
PROMPTS_MAX = 64
ANSWERS_MAX = 128

NAMES = FormNames("cmpl", "text_completion", "text_completion")

COMPLETION_WORDS = {
    "prompt": f"A text, a list of token ids, or a list of up to {PROMPTS_MAX} of either.",
    "echo": "Repeat the prompt before the answer; with `logprobs` its tokens are scored, too.",
    "logprobs": f"Return the logarithm of each token's probability, and so many likeliest tokens "
    f"at its place, up to {TOP_LOGPROBS_MAX}.",
    **SAMPLING_WORDS,
    "max_tokens": SAMPLING_WORDS["max_tokens"] + f" Default {_OUTPUT_TOKENS_DEFAULT}.",
    "n": SAMPLING_WORDS["n"] + f" For all prompts {ANSWERS_MAX} at most.",
}

_NEUTRAL = NEUTRAL | {"suffix": ("",)}


@dataclass(frozen=True, slots=True)
class _Prompt:
    """Text or token ids, as one of them is given."""

    text: str | None = None
    tokens: tuple[int, ...] = ()

    def to_arguments(self) -> dict[str, Any]:
        return {"prompt": self.text} if self.text is not None else {"prompt_tokens": self.tokens}


def read_completion(fields: Fields) -> GenerationCall:
    """Raises ApiError (400, 413)."""
    orders = read_orders(fields)
    echo = bool(fields.flag("echo"))

    def make_form(choice: int) -> TextForm:
        job_input = orders[choice].job_input
        return TextForm(
            echo=(job_input.prompt or "") if echo else "",
            echoes_scores=job_input.prompt_logprobs is not None,
            shows_scores=job_input.logprobs is not None,
        )

    return GenerationCall(orders, read_streaming(fields), NAMES, make_form)


def read_orders(fields: Fields) -> Sequence[GenerationOrder]:
    """Raises ApiError (400, 413)."""
    check_names(fields, COMPLETION_WORDS, neutral=_NEUTRAL)
    routing = read_routing(fields)
    sampling = read_sampling(fields, max_tokens_default=_OUTPUT_TOKENS_DEFAULT)
    prompts = _read_prompts(fields.required("prompt"))
    choices = read_choices(fields)
    if len(prompts) * choices > ANSWERS_MAX:
        raise invalid(f"prompts times n is at most {ANSWERS_MAX}", "n")
    logprobs = _read_logprobs(fields)
    orders: list[GenerationOrder] = []
    for prompt in prompts:
        # Token ids are spelled by the model that has them.
        is_scored = fields.flag("echo") and (logprobs is not None or prompt.text is None)
        job_input = GenerationInput(
            logprobs=logprobs,
            prompt_logprobs=(logprobs or 0) if is_scored else None,
            **sampling,
            **prompt.to_arguments(),
        )
        size = text_bytes(job_input)
        check_text_size(size, "prompt")
        orders += with_choices(GenerationOrder(routing, job_input, size), choices)
    return orders


def _read_logprobs(fields: Fields) -> int | None:
    # Some SDKs send the flag that chats have.
    if fields.raw("logprobs") is False:
        return None
    return fields.integer("logprobs", low=0, high=TOP_LOGPROBS_MAX)


def _read_prompts(value: Any) -> list[_Prompt]:
    """A prompt, or a list of prompts; a list of numbers is one prompt."""
    if not isinstance(value, list) or not any(isinstance(item, str | list) for item in value):
        return [_read_prompt(value, "prompt")]
    if len(value) > PROMPTS_MAX:
        raise unsupported(f"prompt has at most {PROMPTS_MAX} texts: send more requests", "prompt")
    return [_read_prompt(item, f"prompt[{number}]") for number, item in enumerate(value)]


def _read_prompt(value: Any, path: str) -> _Prompt:
    if isinstance(value, list):
        return _Prompt(tokens=_read_tokens(value, path))
    text = check_text(value, path)
    if not text:
        raise invalid(f"{path} is empty: there is nothing to continue", "prompt")
    return _Prompt(text)


def _read_tokens(value: list[Any], path: str) -> tuple[int, ...]:
    if not 0 < len(value) <= TOKENS_MAX:
        raise invalid(f"{path} has 1 to {TOKENS_MAX} token ids", "prompt")
    if not all(type(item) is int and 0 <= item <= TOKEN_ID_MAX for item in value):
        raise invalid(f"{path} must be text or a list of token ids", "prompt")
    return tuple(value)
