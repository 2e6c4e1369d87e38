"""POST /v1/completions: a prompt as text or as token ids."""

from typing import Any

from coordinator.gateway.errors import invalid, unsupported
from coordinator.gateway.http.openai.forms import FormNames, TextForm
from coordinator.gateway.http.openai.generation import GenerationCall
from coordinator.gateway.http.openai.sampling import read_sampling, read_streaming
from coordinator.gateway.http.routing_params import read_routing
from coordinator.gateway.http.strict_json import Fields, check_text
from coordinator.gateway.orders import GenerationOrder, check_text_size
from protocol.generation import GenerationInput
from protocol.limits import TOKENS_MAX

_TOKEN_ID_MAX = 2**31 - 1
# As at OpenAI.
_OUTPUT_TOKENS_DEFAULT = 16
# A reference in a tuple; the numbers themselves come on top.
_TOKEN_BYTES = 8


NAMES = FormNames("cmpl", "text_completion", "text_completion")


def read_completion(fields: Fields) -> GenerationCall:
    """Raises ApiError (400, 413)."""
    return GenerationCall(
        (read_order(fields),), read_streaming(fields), NAMES, lambda _: TextForm()
    )


def read_order(fields: Fields) -> GenerationOrder:
    """Raises ApiError (400, 413)."""
    routing = read_routing(fields)
    sampling = read_sampling(fields, max_tokens_default=_OUTPUT_TOKENS_DEFAULT)
    prompt, size = _read_prompt(fields.required("prompt"))
    job_input = GenerationInput(**sampling.to_arguments() | prompt)
    return GenerationOrder(routing, job_input, size)


def _read_prompt(value: Any) -> tuple[dict[str, Any], int]:
    """Text, token ids, or a list with one of either; and its size in bytes."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, list):
        tokens = _read_tokens(value)
        return {"prompt_tokens": tokens}, _TOKEN_BYTES * len(tokens)
    text = check_text(value, "prompt")
    if not text:
        raise invalid("prompt is empty: there is nothing to continue", "prompt")
    size = len(text.encode())
    check_text_size(size, "prompt")
    return {"prompt": text}, size


def _read_tokens(value: list[Any]) -> tuple[int, ...]:
    if any(isinstance(item, str | list) for item in value):
        raise unsupported("several prompts in one request are not supported: send each", "prompt")
    if not 0 < len(value) <= TOKENS_MAX:
        raise invalid(f"prompt has 1 to {TOKENS_MAX} token ids", "prompt")
    if not all(type(item) is int and 0 <= item <= _TOKEN_ID_MAX for item in value):
        raise invalid("prompt must be text or a list of token ids", "prompt")
    return tuple(value)
