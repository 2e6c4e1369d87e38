"""Reading a request for a message, or for the count of its tokens."""

import json
from dataclasses import dataclass
from typing import Any

from coordinator.gateway.chat.schemas import schema_text
from coordinator.gateway.errors import ApiError, Problem, invalid
from coordinator.gateway.http.anthropic.content import read_messages, read_system
from coordinator.gateway.http.anthropic.dialect import NO_THREADS
from coordinator.gateway.http.anthropic.tools import read_tools
from coordinator.gateway.http.openai.names import ROUTING_WORDS, check_names
from coordinator.gateway.http.routing_params import read_routing
from coordinator.gateway.http.strict_json import Fields
from coordinator.gateway.orders import GenerationOrder, check_text_size, text_bytes
from protocol.generation import FormatKind, GenerationInput, OutputFormat
from protocol.limits import STOP_CHARS_MAX, STOP_STRINGS_MAX, TOKENS_MAX

# The narrowest nucleus that the wire can say.
_TOP_P_MIN = 1e-9

WORDS = {
    "model": "The model's name, or the digest of its manifest.",
    "messages": "The conversation. If the last message is the assistant's, the answer goes on "
    "with it.",
    "max_tokens": "The most tokens that the answer may have. More than the model's context leaves "
    "is lowered to that.",
    "system": "What the model shall be told beforehand: text, or blocks of text.",
    "stop_sequences": "Texts that end the answer; it ends before them.",
    "stream": "Send the answer as server-sent events while it is made.",
    "temperature": "How far the choice of tokens spreads; 0 always takes the likeliest. Default 1.",
    "top_p": "Choose among the likeliest tokens that have this probability together. Default 1.",
    "top_k": "Choose among so many of the likeliest tokens; 0 is no limit.",
    "tools": "Functions that the model may call.",
    "tool_choice": "`auto`, `any`, `tool` with a name, or `none`.",
    "thinking": "Whether to show what the model writes before its answer, if it does so.",
    "output_config": "`format`: a JSON schema that the answer follows. `effort` is passed to the "
    "model's chat template.",
    "thread": "Refused: send the whole conversation as `messages`.",
    "models": ROUTING_WORDS["models"],
    "provider": "Where the job may run and what it may cost: OpenRouter's object.",
}

# How an account is billed and served, and what SDKs let through of their own. None of these changes
# what the model says.
_IGNORED = frozenset(
    {"betas", "cache_control", "inference_geo", "metadata", "service_tier", "speed"}
)
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "container": (),
    # What an agent may forget of a long conversation; here it decides that for itself.
    "context_management": ({}, {"edits": []}),
    "mcp_servers": ([],),
}

_THINKING = {"enabled": True, "adaptive": True, "disabled": False}


@dataclass(frozen=True, slots=True)
class MessageRequest:
    """`shows_thinking` is whether thinking becomes blocks of the answer."""

    order: GenerationOrder
    is_streamed: bool
    shows_thinking: bool


def read_request(fields: Fields) -> MessageRequest:
    """Raises ApiError (400, 413)."""
    check_names(fields, WORDS, neutral=_NEUTRAL, ignored=_IGNORED)
    if fields.raw("thread") is not None:
        raise ApiError(
            Problem(
                400,
                "thread: conversations are not kept here: send all of its messages",
                code=NO_THREADS,
                param="thread",
            )
        )
    max_tokens = fields.integer("max_tokens", low=1, high=2**31)
    if max_tokens is None:
        fields.required("max_tokens")
    shows_thinking = _read_thinking(fields)
    top_p = fields.number("top_p", low=0, high=1)
    chosen: dict[str, Any] = {
        "temperature": fields.number("temperature", low=0, high=2),
        "top_p": None if top_p is None else max(_TOP_P_MIN, top_p),
        "top_k": fields.integer("top_k", low=0, high=TOKENS_MAX),
        "stop": fields.texts(
            "stop_sequences", items_max=STOP_STRINGS_MAX, chars_max=STOP_CHARS_MAX
        ),
        "format": _read_format(fields),
        "max_tokens": min(max_tokens or 1, TOKENS_MAX),
    }
    order = _read_order(fields, {name: v for name, v in chosen.items() if v is not None})
    return MessageRequest(order, bool(fields.flag("stream")), bool(shows_thinking))


def read_count(fields: Fields) -> GenerationOrder:
    """Raises ApiError (400, 413)."""
    # What else a message has may stand here too, and changes no count.
    return _read_order(fields, {"max_tokens": 1, "tokenizes_only": True})


def _read_order(fields: Fields, arguments: dict[str, Any]) -> GenerationOrder:
    routing = read_routing(fields)
    messages = read_messages(fields)
    last = messages[-1]
    is_prefill = last.role == "assistant"
    if is_prefill and last.tool_calls:
        raise invalid("the last message calls tools: their results must follow", "messages")
    job_input = GenerationInput(
        messages=(*read_system(fields), *messages),
        continues_final_message=is_prefill and bool(last.content),
        template_arguments=_template_arguments(fields),
        **read_tools(fields).to_arguments(),
        **arguments,
    )
    size = text_bytes(job_input)
    check_text_size(size, "messages")
    return GenerationOrder(routing, job_input, size)


def _read_thinking(fields: Fields) -> bool | None:
    thinking = fields.fields("thinking")
    return None if thinking is None else thinking.choice("type", _THINKING)


def _template_arguments(fields: Fields) -> str:
    """As JSON, under the names that chat templates have for it; empty if there are none."""
    arguments: dict[str, object] = {}
    thinks = _read_thinking(fields)
    if thinks is not None:
        arguments["enable_thinking"] = thinks
    config = fields.fields("output_config")
    efforts = {word: word for word in ("low", "medium", "high", "xhigh", "max")}
    effort = None if config is None else config.choice("effort", efforts)
    if effort is not None:
        arguments["reasoning_effort"] = effort
    return json.dumps(arguments) if arguments else ""


def _read_format(fields: Fields) -> OutputFormat | None:
    config = fields.fields("output_config")
    wanted = None if config is None else config.fields("format")
    if wanted is None:
        return None
    kinds = {"json_schema": FormatKind.JSON_SCHEMA}
    if wanted.choice("type", kinds) is None:
        wanted.required("type")
    schema = wanted.required("schema")
    return OutputFormat(FormatKind.JSON_SCHEMA, schema_text(schema, wanted.path("schema")))
