"""The functions that a model may call, and whether it must."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from coordinator.gateway.chat.schemas import schema_text
from coordinator.gateway.errors import invalid
from protocol.generation import Tool, ToolChoice
from protocol.limits import FORMAT_CHARS_MAX, NAME_CHARS_MAX

# As many models are told of at most: their names go into a model's text and back out of it.
_SIGNS = "_-.:/"


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request says of tools."""

    tools: tuple[Tool, ...] = ()
    choice: ToolChoice = ToolChoice.AUTO
    is_parallel: bool = True

    def to_arguments(self) -> dict[str, Any]:
        """As `GenerationInput` takes them. A model that must not call is not told of tools."""
        if self.choice is ToolChoice.NONE or not self.tools:
            return {}
        return {
            "tools": self.tools,
            "tool_choice": self.choice,
            "parallel_tool_calls": self.is_parallel,
        }


def make_tool(name: str, description: str, parameters: Any, path: str) -> Tool:
    """`path` is where the function stands. Raises ApiError (400)."""
    is_name = 0 < len(name) <= NAME_CHARS_MAX and all(
        sign.isascii() and (sign.isalnum() or sign in _SIGNS) for sign in name
    )
    if not is_name:
        raise invalid(
            f"{path}.name has 1 to {NAME_CHARS_MAX} letters, digits, or signs of {_SIGNS}",
            f"{path}.name",
        )
    if len(description) > FORMAT_CHARS_MAX:
        raise invalid(
            f"{path}.description has at most {FORMAT_CHARS_MAX} characters", f"{path}.description"
        )
    schema = "" if parameters is None else schema_text(parameters, f"{path}.parameters")
    return Tool(name, description, schema)


def check_tools(tools: Sequence[Tool], path: str) -> None:
    """Raises ApiError (400) if two tools have one name."""
    names: set[str] = set()
    for number, tool in enumerate(tools):
        if tool.name in names:
            raise invalid(f"two tools are called {tool.name}", f"{path}[{number}]")
        names.add(tool.name)


def only_tools(tools: Sequence[Tool], names: Sequence[str], path: str) -> tuple[Tool, ...]:
    """The tools with these names. Raises ApiError (400) if one is not there."""
    known = {tool.name: tool for tool in tools}
    for name in names:
        if name not in known:
            raise invalid(f"{path} names {name[:NAME_CHARS_MAX]}, which is not among tools", path)
    return tuple(known[name] for name in dict.fromkeys(names))
