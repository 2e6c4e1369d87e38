"""POST /v1/chat/completions: the next message of a conversation."""

import json
from collections.abc import Sequence
from typing import Any

from coordinator.gateway.errors import invalid, unsupported
from coordinator.gateway.http.openai.formats import JSON_KINDS, given_format
from coordinator.gateway.http.openai.forms import ChatForm, FormNames
from coordinator.gateway.http.openai.generation import GenerationCall
from coordinator.gateway.http.openai.messages import is_prefill, read_messages
from coordinator.gateway.http.openai.names import NEUTRAL, check_names
from coordinator.gateway.http.openai.sampling import (
    SAMPLING_WORDS,
    read_choices,
    read_sampling,
    read_streaming,
)
from coordinator.gateway.http.openai.tools import TOOL_WORDS, read_tools
from coordinator.gateway.http.routing_params import read_routing
from coordinator.gateway.http.strict_json import Fields
from coordinator.gateway.orders import GenerationOrder, check_text_size, text_bytes, with_choices
from protocol.generation import GenerationInput
from protocol.limits import FORMAT_CHARS_MAX, TOP_LOGPROBS_MAX

NAMES = FormNames("chatcmpl", "chat.completion", "chat.completion.chunk")

CHAT_WORDS = {
    "messages": "The conversation so far. Parts of a message are joined by line breaks.",
    "max_completion_tokens": "The newer name of `max_tokens`.",
    "logprobs": "Whether to return the logarithm of each token's probability.",
    "top_logprobs": f"With `logprobs`: so many likeliest tokens at each place, up to "
    f"{TOP_LOGPROBS_MAX}.",
    "continue_final_message": "Go on with the last message, which is the assistant's. Otherwise "
    "the answer is a turn after it.",
    "add_generation_prompt": "False belongs to `continue_final_message`.",
    "chat_template_kwargs": "An object for the model's chat template.",
    "reasoning_effort": "Passed to the model's chat template, which may know it.",
    "include_reasoning": "Whether to return what the model wrote before its answer. Default true.",
    "reasoning": "OpenRouter's object: `exclude` and `effort`.",
    **SAMPLING_WORDS,
    **TOOL_WORDS,
}

_NEUTRAL = NEUTRAL | {
    # A chat template writes the special tokens itself.
    "add_special_tokens": (False,),
    "echo": (False,),
    # The older form of tools.
    "functions": ([],),
    "function_call": ("none", "auto"),
}


def read_chat(fields: Fields) -> GenerationCall:
    """Raises ApiError (400, 413)."""
    orders = read_orders(fields)
    shows_scores = orders[0].job_input.logprobs is not None
    form = ChatForm(_shows_reasoning(fields), shows_scores)
    return GenerationCall(orders, read_streaming(fields), NAMES, lambda _: form)


def read_orders(fields: Fields) -> Sequence[GenerationOrder]:
    """Raises ApiError (400, 413)."""
    check_names(fields, CHAT_WORDS, neutral=_neutral(fields))
    routing = read_routing(fields)
    messages = read_messages(fields)
    tools = read_tools(fields).to_arguments()
    sampling = read_sampling(fields, length_names=("max_completion_tokens", "max_tokens"))
    wanted = sampling.get("format")
    if tools and wanted is not None and wanted.kind not in JSON_KINDS:
        raise unsupported(
            f"{given_format(fields)} with tools is JSON: leave one out, or set tool_choice to none",
            given_format(fields),
        )
    job_input = GenerationInput(
        messages=messages,
        continues_final_message=is_prefill(fields),
        template_arguments=read_template_arguments(fields),
        logprobs=_read_logprobs(fields),
        **tools,
        **sampling,
    )
    size = text_bytes(job_input)
    check_text_size(size, "messages")
    return with_choices(GenerationOrder(routing, job_input, size), read_choices(fields))


def _neutral(fields: Fields) -> dict[str, tuple[Any, ...]]:
    """Functions that must not be called change nothing."""
    if fields.raw("function_call") != "none":
        return _NEUTRAL
    return _NEUTRAL | {"functions": (fields.raw("functions"),)}


def _read_logprobs(fields: Fields) -> int | None:
    is_asked = fields.flag("logprobs")
    top = fields.integer("top_logprobs", low=0, high=TOP_LOGPROBS_MAX)
    if top and not is_asked:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    return (top or 0) if is_asked else None


def read_template_arguments(fields: Fields) -> str:
    """As JSON; empty if there are none."""
    arguments: dict[str, Any] = {}
    reasoning = fields.fields("reasoning")
    for holder, name in ((fields, "reasoning_effort"), (reasoning, "effort")):
        effort = None if holder is None else holder.raw(name)
        if isinstance(effort, str):
            arguments["reasoning_effort"] = effort
    given = fields.fields("chat_template_kwargs")
    if given is not None:
        arguments |= fields.raw("chat_template_kwargs")
    if not arguments:
        return ""
    text = json.dumps(arguments)
    if len(text) > FORMAT_CHARS_MAX:
        raise invalid(
            f"chat_template_kwargs has more than {FORMAT_CHARS_MAX} characters",
            "chat_template_kwargs",
        )
    return text


def _shows_reasoning(fields: Fields) -> bool:
    reasoning = fields.fields("reasoning")
    is_excluded = reasoning is not None and reasoning.flag("exclude")
    return not is_excluded and fields.flag("include_reasoning") is not False
