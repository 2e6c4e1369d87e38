"""`tools` and `tool_choice` of a response: as in chats, without the object around a function, and
with namespaces, which are functions under one heading."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from coordinator.gateway.chat.tools import ToolUse, check_tools, make_tool, only_tools
from coordinator.gateway.errors import invalid, unsupported
from coordinator.gateway.http.openai_responses.items import object_of
from coordinator.gateway.http.strict_json import Fields, check_text, read_list
from protocol.generation import Tool, ToolChoice
from protocol.limits import NAME_CHARS_MAX, TOOLS_MAX

_CHOICES = {choice.value: choice for choice in ToolChoice}

# What agents send unless they are told not to, and how they are.
_CURES = {"web_search": ' (in Codex, set web_search = "disabled")'}


@dataclass(frozen=True, slots=True)
class ResponseTools:
    """`namespaces` has the namespace of each function that is in one. A model is told of plain
    names, so no two functions may share one."""

    use: ToolUse
    namespaces: Mapping[str, str]


def read_tools(fields: Fields) -> ResponseTools:
    """Raises ApiError (400)."""
    value = fields.raw("tools")
    groups = () if value is None else read_list(value, "tools", items_max=TOOLS_MAX, read=_read)
    tools = tuple(tool for _, group in groups for tool in group)
    if len(tools) > TOOLS_MAX:
        raise invalid(f"tools has at most {TOOLS_MAX} functions", "tools")
    check_tools(tools, "tools")
    parallel = fields.flag("parallel_tool_calls")
    wanted, choice = _read_choice(fields, tools)
    if choice is ToolChoice.REQUIRED and not wanted:
        raise invalid("tool_choice asks for a call, and there are no tools", "tool_choice")
    use = ToolUse(wanted, choice, True if parallel is None else parallel)
    return ResponseTools(
        use, {tool.name: space for space, group in groups if space for tool in group}
    )


def _read(value: Any, path: str) -> tuple[str, tuple[Tool, ...]]:
    """A function, or the functions of a namespace."""
    tool = object_of(value, path)
    if tool.required("type") != "namespace":
        return "", (_read_tool(value, path),)
    name = tool.text("name", chars_max=NAME_CHARS_MAX)
    inner = tool.path("tools")
    return name, read_list(tool.required("tools"), inner, items_max=TOOLS_MAX, read=_read_tool)


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
        cure = _CURES.get(kind, "") if isinstance(kind, str) else ""
        raise unsupported(
            f"{path}: tools of type {str(kind)[:64]} are not supported, only functions{cure}", path
        )
    return tool
