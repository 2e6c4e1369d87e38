"""`tools` and `tool_choice` of a request."""

from typing import Any

from coordinator.gateway.chat.tools import ToolUse, check_tools, make_tool, only_tools
from coordinator.gateway.errors import invalid, unsupported
from coordinator.gateway.http.anthropic.content import object_of
from coordinator.gateway.http.strict_json import Fields, check_text, read_list
from protocol.generation import Tool, ToolChoice
from protocol.limits import NAME_CHARS_MAX, TOOLS_MAX

_CHOICES = {
    "auto": ToolChoice.AUTO,
    "any": ToolChoice.REQUIRED,
    "tool": ToolChoice.REQUIRED,
    "none": ToolChoice.NONE,
}


def read_tools(fields: Fields) -> ToolUse:
    """Raises ApiError (400)."""
    value = fields.raw("tools")
    tools = () if value is None else read_list(value, "tools", items_max=TOOLS_MAX, read=_read_tool)
    check_tools(tools, "tools")
    wanted = fields.fields("tool_choice")
    if wanted is None:
        return ToolUse(tools)
    choice = wanted.choice("type", _CHOICES) or ToolChoice.AUTO
    if wanted.raw("type") == "tool":
        name = wanted.text("name", chars_max=NAME_CHARS_MAX)
        tools = only_tools(tools, [name], wanted.path("name"))
    if choice is ToolChoice.REQUIRED and not tools:
        raise invalid("tool_choice asks for a call, and there are no tools", "tool_choice")
    return ToolUse(tools, choice, not wanted.flag("disable_parallel_tool_use"))


def _read_tool(value: Any, path: str) -> Tool:
    tool = object_of(value, path)
    kind = tool.raw("type")
    if kind not in (None, "custom"):
        raise unsupported(
            f"{path}.type is {str(kind)[:64]}: only tools that the client runs are supported: give "
            "a name and an input_schema, and leave out the type",
            f"{path}.type",
        )
    description = tool.raw("description")
    if description is not None:
        check_text(description, tool.path("description"))
    name = check_text(tool.required("name"), tool.path("name"))
    return make_tool(name, description or "", tool.required("input_schema"), path)
