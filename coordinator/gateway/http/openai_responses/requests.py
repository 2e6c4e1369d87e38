"""Reading a request for a response."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.gateway.chat.schemas import schema_text
from coordinator.gateway.errors import invalid, unsupported
from coordinator.gateway.http.openai.names import ROUTING_WORDS, check_names
from coordinator.gateway.http.openai_responses.items import read_input
from coordinator.gateway.http.openai_responses.tools import ResponseTools, read_tools
from coordinator.gateway.http.routing_params import read_routing
from coordinator.gateway.http.strict_json import Fields, check_text
from coordinator.gateway.orders import (
    OUTPUT_TOKENS_DEFAULT,
    GenerationOrder,
    check_text_size,
    text_bytes,
)
from protocol.generation import ChatMessage, FormatKind, GenerationInput, OutputFormat
from protocol.limits import TOKENS_MAX

# The narrowest nucleus that the wire can say.
_TOP_P_MIN = 1e-9
_INTEGER_MAX = 2**63 - 1

METADATA_PAIRS_MAX = 16
METADATA_CHARS_MAX = 512

WORDS = {
    "model": "The model's name, or the digest of its manifest.",
    "input": "Text, or the items of a conversation.",
    "instructions": "What the model shall be told beforehand.",
    "max_output_tokens": "The most tokens that the answer may have. More than the model's context "
    "leaves is lowered to that.",
    "temperature": "How far the choice of tokens spreads; 0 always takes the likeliest. Default 1.",
    "top_p": "Choose among the likeliest tokens that have this probability together. Default 1.",
    "text": "`format`: `text`, `json_object`, or `json_schema` with a schema that the answer "
    "follows; it is always strict.",
    "tools": "Functions that the model may call, by themselves or in namespaces.",
    "tool_choice": "`auto`, `none`, `required`, one function that must be called, or "
    "`allowed_tools`. Default `auto`.",
    "parallel_tool_calls": "Whether an answer may have several calls. Default true.",
    "reasoning": "`effort` is passed to the model's chat template, which may know it.",
    "metadata": "Given back with the response.",
    "stream": "Send the response as server-sent events while it is made.",
    "store": "Accepted; nothing is stored.",
    "previous_response_id": "Refused: send the conversation as `input`.",
    "conversation": "Refused: send the conversation as `input`.",
    "background": "Refused, if true.",
    "models": ROUTING_WORDS["models"],
    "provider": "Where the job may run and what it may cost: OpenRouter's object.",
}

# How an account is billed, watched and served, and what to say beside the answer.
_IGNORED = frozenset(
    {
        "client_metadata",
        "include",
        "max_tool_calls",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "session_id",
        "stream_options",
        # What does not fit is an error in either case; nothing is cut.
        "truncation",
        "user",
    }
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "context_management": ([],),
    "moderation": (),
    "prompt": (),
    "top_logprobs": (0,),
}
_STATE = ("previous_response_id", "conversation")


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """`echo` are the fields that the response repeats, as they were given, `namespaces` those of
    functions, by name."""

    order: GenerationOrder
    is_streamed: bool
    echo: dict[str, Any]
    namespaces: Mapping[str, str]


def read_request(fields: Fields) -> ResponseRequest:
    """Raises ApiError (400, 413)."""
    check_names(fields, WORDS, neutral=_NEUTRAL, ignored=_IGNORED)
    _check_state(fields)
    limit = fields.integer("max_output_tokens", low=1, high=_INTEGER_MAX)
    top_p = fields.number("top_p", low=0, high=1)
    chosen: dict[str, Any] = {
        "temperature": fields.number("temperature", low=0, high=2),
        "top_p": None if top_p is None else max(_TOP_P_MIN, top_p),
        "format": _read_format(fields),
    }
    tools = read_tools(fields)
    chosen["max_tokens"] = min(limit or OUTPUT_TOKENS_DEFAULT, TOKENS_MAX)
    order = _read_order(
        fields, tools, {name: value for name, value in chosen.items() if value is not None}
    )
    echo = _read_echo(fields, order.job_input)
    return ResponseRequest(order, bool(fields.flag("stream")), echo, tools.namespaces)


def read_count(fields: Fields) -> GenerationOrder:
    """The same input, to be counted. Raises ApiError (400, 413)."""
    check_names(fields, WORDS, neutral=_NEUTRAL, ignored=_IGNORED)
    _check_state(fields)
    return _read_order(fields, read_tools(fields), {"max_tokens": 1, "tokenizes_only": True})


def _read_order(
    fields: Fields, tools: ResponseTools, arguments: Mapping[str, Any]
) -> GenerationOrder:
    routing = read_routing(fields)
    messages = read_input(fields)
    instructions = fields.raw("instructions")
    if instructions:
        text = check_text(instructions, "instructions")
        messages = (ChatMessage("system", text), *messages)
    job_input = GenerationInput(
        messages=messages,
        template_arguments=_read_effort(fields),
        **tools.use.to_arguments(),
        **arguments,
    )
    size = text_bytes(job_input)
    check_text_size(size, "input")
    return GenerationOrder(routing, job_input, size)


def _check_state(fields: Fields) -> None:
    for name in _STATE:
        if fields.raw(name) is not None:
            raise unsupported(
                f"{name}: responses are not stored here: send the whole conversation as input",
                name,
            )
    fields.flag("store")
    if fields.flag("background"):
        raise unsupported(
            "background: responses are not stored here: use stream, or a batch", "background"
        )


def _read_effort(fields: Fields) -> str:
    reasoning = fields.fields("reasoning")
    effort = None if reasoning is None else reasoning.raw("effort")
    if effort is None:
        return ""
    path = "reasoning.effort"
    if not 0 < len(check_text(effort, path)) <= 64:
        raise invalid(f"{path} has 1 to 64 characters", path)
    return json.dumps({"reasoning_effort": effort})


def _read_format(fields: Fields) -> OutputFormat | None:
    text = fields.fields("text")
    wanted = None if text is None else text.fields("format")
    if wanted is None:
        return None
    kinds = {
        "text": None,
        "json_object": FormatKind.JSON_OBJECT,
        "json_schema": FormatKind.JSON_SCHEMA,
    }
    wanted.required("type")
    kind = wanted.choice("type", kinds)
    if kind is not FormatKind.JSON_SCHEMA:
        return None if kind is None else OutputFormat(kind)
    schema = wanted.required("schema")
    return OutputFormat(kind, schema_text(schema, wanted.path("schema")))


def _read_echo(fields: Fields, job_input: GenerationInput) -> dict[str, Any]:
    reasoning = fields.raw("reasoning") or {}
    text = {name: value for name, value in (fields.raw("text") or {}).items() if value is not None}
    return {
        "instructions": fields.raw("instructions"),
        "max_output_tokens": fields.raw("max_output_tokens"),
        "metadata": _read_metadata(fields),
        "parallel_tool_calls": job_input.parallel_tool_calls,
        "reasoning": {"effort": reasoning.get("effort"), "summary": reasoning.get("summary")},
        "temperature": job_input.temperature,
        "text": {"format": {"type": "text"}} | text,
        "tool_choice": fields.raw("tool_choice") or "auto",
        "tools": fields.raw("tools") or [],
        "top_p": job_input.top_p,
        "truncation": "disabled",
        "user": fields.raw("user"),
    }


def _read_metadata(fields: Fields) -> dict[str, str]:
    metadata = fields.fields("metadata")
    if metadata is None:
        return {}
    pairs: dict[str, Any] = fields.raw("metadata")
    if len(pairs) > METADATA_PAIRS_MAX:
        raise invalid(f"metadata has at most {METADATA_PAIRS_MAX} pairs", "metadata")
    for name in pairs:
        text = check_text(metadata.required(name), metadata.path(name))
        if len(name) > METADATA_CHARS_MAX or len(text) > METADATA_CHARS_MAX:
            raise invalid(
                f"names and values of metadata have at most {METADATA_CHARS_MAX} characters",
                "metadata",
            )
    return pairs
