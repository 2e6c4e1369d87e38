"""`tools` and `tool_choice` of a response: as in chats, without the object around a function."""

from typing import Any

from coordinator.gateway.chat.tools import ToolUse, check_tools, make_tool, only_tools
from coordinator.gateway.errors import invalid, unsupported
from coordinator.gateway.http.openai_responses.items import object_of
from coordinator.gateway.http.strict_json import Fields, check_text, read_list
from protocol.generation import Tool, ToolChoice
from protocol.limits import NAME_CHARS_MAX, TOOLS_MAX

_CHOICES = {choice.value: choice for choice in ToolChoice}


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
    tool = _function(object_of(value, path))
    description = tool.raw("description")
    if description is not None:
        check_text(description, tool.path("description"))
    name = check_text(tool.required("name"), tool.path("name"))
    return make_tool(name, description or "", tool.raw("parameters"), path)


def _read_choice(fields: Fields, tools: tuple[Tool, ...]) -> tuple[tuple[Tool, ...], ToolChoice]:
    if not isinstance(fields.raw("tool_choice"), dict):
        return tools, fields.choice("tool_choice", _CHOICES) or ToolChoice.AUTO
    wanted = fields.fields("tool_choice")
    assert wanted is not None, "it is an object"
    if wanted.raw("type") != "allowed_tools":
        return only_tools(tools, [_read_name(wanted)], "tool_choice"), ToolChoice.REQUIRED
    modes = {mode: _CHOICES[mode] for mode in ("auto", "required")}
    mode = wanted.choice("mode", modes) or ToolChoice.AUTO
    path = wanted.path("tools")
    names = read_list(
        wanted.required("tools"),
        path,
        items_max=TOOLS_MAX,
        read=lambda value, path: _read_name(object_of(value, path)),
    )
    return only_tools(tools, names, path), mode


def _read_name(choice: Fields) -> str:
    return _function(choice).text("name", chars_max=NAME_CHARS_MAX)


def _function(tool: Fields) -> Fields:
    """A function is the only type of tool that is run by the client and told as a schema."""
    kind = tool.required("type")
    if kind != "function":
        path = tool.path("type")
        raise unsupported(
            f"{path}: tools of type {str(kind)[:64]} are not supported, only functions", path
        )
    return tool
