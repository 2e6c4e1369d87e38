"""A chat as templates expect it: plain maps and lists, in which every text of a client is data."""

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Any

from capanode.engines.base import EngineRefusal
from capanode.engines.chat_format import ModelChat
from capanode.engines.control_marks import END_OF_FINAL_MESSAGE, ControlMarks
from protocol.errors import Code
from protocol.generation import ChatMessage, GenerationInput, Tool, ToolCall, ToolChoice

_ROLE = re.compile(r"[A-Za-z0-9_-]+")
# What Mistral's templates insist on.
_NINE_CHARACTERS = re.compile(r"[A-Za-z0-9]{9}")

_TOOLS_TEXT = (
    "You may call functions. Each line between <tools> and </tools> describes one:\n"
    "<tools>\n{tools}\n</tools>\n"
    "To call a function, write its name and arguments as a JSON object like this:\n"
    '<tool_call>\n{{"name": "FUNCTION", "arguments": {{…}}}}\n</tool_call>'
)

Plain = dict[str, Any]


class ChatReader:
    """Turns the messages and tools of inputs into what one model's template is given."""

    def __init__(self, chat: ModelChat, marks: ControlMarks) -> None:
        self._chat, self._marks = chat, marks

    def messages(self, job_input: GenerationInput) -> list[Plain]:
        """With the tools in a system text, and their calls and results in texts, for a model whose
        template knows none. Raises EngineRefusal."""
        plain = [self._message(message) for message in job_input.messages]
        if job_input.continues_final_message:
            _mark_end(plain[-1])
        if self._chat.knows_tools:
            return plain
        told = _without_tool_roles(plain)
        tools = self.tools(job_input)
        return _with_system_text(told, tools) if tools else told

    def tools(self, job_input: GenerationInput) -> list[Plain] | None:
        if not job_input.tools or job_input.tool_choice is ToolChoice.NONE:
            return None
        return [self._tool(tool) for tool in job_input.tools]

    def arguments(self, text: str) -> Plain:
        """The template's own arguments. Raises EngineRefusal."""
        values = read_json_object(text) if text else {}
        plain = self._marks.as_data_deep(values)
        assert isinstance(plain, dict)
        return plain

    def _message(self, message: ChatMessage) -> Plain:
        if _ROLE.fullmatch(message.role) is None:
            raise EngineRefusal("a message's role is not a word", code=Code.INVALID_INPUT)
        content, reasoning = message.content, message.reasoning
        if message.role == "assistant" and reasoning is None and self._chat.reasons:
            reasoning, content = self._split_reasoning(content)
        plain: Plain = {"role": message.role, "content": self._marks.as_data(content)}
        if reasoning is not None and self._chat.reasons:
            plain["reasoning_content"] = self._marks.as_data(reasoning)
        if message.tool_calls:
            plain["tool_calls"] = [self._call(call) for call in message.tool_calls]
        if message.tool_call_id is not None:
            plain["tool_call_id"] = self._call_id(message.tool_call_id)
        if message.name is not None:
            plain["name"] = self._marks.as_data(message.name)
        return plain

    def _split_reasoning(self, content: str) -> tuple[str | None, str]:
        """Reasoning that a client sends back inside the answer: templates look for its marks, which
        in data are none."""
        reasoning, mark, answer = content.partition(self._chat.format.reasoning_close)
        if not mark:
            return None, content
        opened = reasoning.lstrip().removeprefix(self._chat.format.reasoning_open)
        return opened.strip("\n"), answer.lstrip("\n")

    def _call(self, call: ToolCall) -> Plain:
        arguments = self._marks.as_data_deep(read_json_object(call.arguments))
        function = {"name": self._marks.as_data(call.name), "arguments": arguments}
        return {"id": self._call_id(call.id), "type": "function", "function": function}

    def _call_id(self, call_id: str) -> str:
        if self._chat.name == "mistral" and _NINE_CHARACTERS.fullmatch(call_id) is None:
            return hashlib.sha256(call_id.encode()).hexdigest()[:9]
        return self._marks.as_data(call_id)

    def _tool(self, tool: Tool) -> Plain:
        schema = read_json_object(tool.parameters) if tool.parameters else {}
        function = {
            "name": self._marks.as_data(tool.name),
            "description": self._marks.as_data(tool.description),
            "parameters": self._marks.as_data_deep(schema or {"type": "object", "properties": {}}),
        }
        return {"type": "function", "function": function}


def read_json_object(text: str) -> dict[str, Any]:
    """Raises EngineRefusal."""
    try:
        value = json.loads(text or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise EngineRefusal(
            "a tool's parameters, a call's arguments and template_arguments must be JSON objects",
            code=Code.INVALID_INPUT,
        )
    return value


def to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _mark_end(message: Plain) -> None:
    content = message["content"]
    end = len(content.rstrip())
    message["content"] = content[:end] + END_OF_FINAL_MESSAGE + content[end:]


def _without_tool_roles(messages: Sequence[Plain]) -> list[Plain]:
    """Calls inside the assistant's text, and their results inside the user's."""
    told: list[Plain] = []
    for message in messages:
        plain = {"role": message["role"], "content": message["content"]}
        plain |= {key: message[key] for key in ("name", "reasoning_content") if key in message}
        if "tool_calls" in message:
            calls = (to_json(call["function"]) for call in message["tool_calls"])
            marked = (f"<tool_call>\n{call}\n</tool_call>" for call in calls)
            plain["content"] = "\n".join([text for text in (plain["content"], *marked) if text])
        if message["role"] == "tool":
            content = f"<tool_response>\n{plain['content']}\n</tool_response>"
            # Templates that insist on turns get the results of parallel calls in one.
            if told and told[-1].get("is_result"):
                told[-1]["content"] += "\n" + content
                continue
            plain = {"role": "user", "content": content, "is_result": True}
        told.append(plain)
    return told


def _with_system_text(messages: list[Plain], tools: Sequence[Plain]) -> list[Plain]:
    lines = "\n".join(to_json(tool["function"]) for tool in tools)
    text = _TOOLS_TEXT.format(tools=lines)
    if messages[0]["role"] == "system":
        first = {**messages[0], "content": f"{messages[0]['content']}\n\n{text}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": text}, *messages]
