"""`tools` and `tool_choice` of a chat, and the calls in messages that are replayed."""

import json
from typing import Any

from coordinator.gateway.chat.tools import ToolUse, check_tools, make_tool, only_tools
from coordinator.gateway.errors import ApiError, invalid, unsupported
from coordinator.gateway.http.strict_json import Fields, check_text, parse_object, read_list
from protocol.generation import Tool, ToolCall, ToolChoice
from protocol.limits import NAME_CHARS_MAX, TOOL_CALLS_MAX, TOOLS_MAX

_CHOICES = {choice.value: choice for choice in ToolChoice}

TOOL_WORDS = {
    "tools": "Functions that the model may call. What is no call in the model's own form is text.",
    "tool_choice": "`auto`, `none`, `required`, one function that must be called, or "
    "`allowed_tools`. Default `auto`.",
    "parallel_tool_calls": "Whether an answer may have several calls. Default true.",
}


def read_tools(fields: Fields) -> ToolUse:
    """Raises ApiError (400)."""
    value = fields.raw("tools")
    tools = () if value is None else read_list(value, "tools", items_max=TOOLS_MAX, read=_read_tool)
    check_tools(tools, "tools")
    parallel = fields.flag("parallel_tool_calls")
    wanted, choice = _read_choice(fields, tools)
    if choice is ToolChoice.REQUIRED and not wanted:
        raise invalid("tool_choice asks for a call, and there are no tools", "tool_choice")
    return ToolUse(wanted, choice, True if parallel is None else parallel)


def _read_tool(value: Any, path: str) -> Tool:
    tool = _object(value, path)
    function = _function(tool)
    description = function.raw("description")
    if description is not None:
        check_text(description, function.path("description"))
    return make_tool(
        check_text(function.required("name"), function.path("name")),
        description or "",
        function.raw("parameters"),
        f"{path}.function",
    )


def _read_choice(fields: Fields, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], ToolChoice]:
    if not isinstance(fields.raw("tool_choice"), dict):
        choice = fields.choice("tool_choice", _CHOICES)
        return tools, choice or ToolChoice.AUTO
    choice_object = fields.fields("tool_choice")
    assert choice_object is not None, "it is an object"
    if choice_object.raw("type") == "allowed_tools":
        return _read_allowed(choice_object, tools)
    name = _function(choice_object).text("name", chars_max=NAME_CHARS_MAX)
    return only_tools(tools, [name], "tool_choice"), ToolChoice.REQUIRED


def _read_allowed(choice: Fields, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], ToolChoice]:
    allowed = choice.fields("allowed_tools")
    if allowed is None:
        raise invalid("you must give tool_choice.allowed_tools", "tool_choice.allowed_tools")
    modes = {mode: _CHOICES[mode] for mode in ("auto", "required")}
    mode = allowed.choice("mode", modes) or ToolChoice.AUTO
    path = allowed.path("tools")
    names = read_list(allowed.required("tools"), path, items_max=TOOLS_MAX, read=_read_name)
    return only_tools(tools, names, path), mode


def _read_name(value: Any, path: str) -> str:
    return _function(_object(value, path)).text("name", chars_max=NAME_CHARS_MAX)


def _function(tool: Fields) -> Fields:
    """The function of a tool, which is the only type of tool that is run by the client."""
    kind = tool.raw("type")
    if kind not in (None, "function"):
        path = tool.path("type")
        raise unsupported(f"{path}: only tools of type function are supported", path)
    function = tool.fields("function")
    if function is None:
        path = tool.path("function")
        raise invalid(f"you must give {path}", path, code="missing_required_parameter")
    return function


def read_calls(message: Fields) -> tuple[ToolCall, ...]:
    """The calls that an assistant's message made. Raises ApiError (400)."""
    calls, older = message.raw("tool_calls"), message.fields("function_call")
    if calls:
        path = message.path("tool_calls")
        return read_list(calls, path, items_max=TOOL_CALLS_MAX, read=_read_call)
    return () if older is None else (_call("", older),)


def _read_call(value: Any, path: str) -> ToolCall:
    call = _object(value, path)
    call_id = call.raw("id")
    if call_id is not None:
        read_name(call_id, call.path("id"))
    return _call(call_id or "", _function(call))


def _call(call_id: str, function: Fields) -> ToolCall:
    name = function.text("name", chars_max=NAME_CHARS_MAX)
    path, arguments = function.path("arguments"), function.raw("arguments")
    if isinstance(arguments, dict):
        # Some SDKs replay the parsed form.
        return ToolCall(call_id, name, json.dumps(arguments))
    text = check_text(arguments or "{}", path)
    try:
        parse_object(text.encode())
    except ApiError:
        raise invalid(f"{path} must be a JSON object as text", path) from None
    return ToolCall(call_id, name, text)


def read_name(value: Any, path: str) -> str:
    """An id or a name of a message."""
    text = check_text(value, path)
    if len(text) > NAME_CHARS_MAX:
        raise invalid(f"{path} has at most {NAME_CHARS_MAX} characters", path)
    return text


def _object(value: Any, path: str) -> Fields:
    if not isinstance(value, dict):
        raise invalid(f"{path} must be an object", path, code="invalid_type")
    return Fields(value, path)
