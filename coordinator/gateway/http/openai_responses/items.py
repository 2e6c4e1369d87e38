"""The input of a response: text, or items that become a chat's messages.

Items of one turn of the assistant (its reasoning, its text and its calls) become one message.
"""

from dataclasses import dataclass, field
from typing import Any

from coordinator.gateway.errors import ApiError, invalid, unsupported
from coordinator.gateway.http.strict_json import Fields, check_text, parse_object, read_list
from protocol.generation import ChatMessage, ToolCall
from protocol.limits import CHAT_MESSAGES_MAX, NAME_CHARS_MAX, TOOL_CALLS_MAX

# `developer` is the newer word for `system`, which is the one that models were taught.
_ROLES = {"user": "user", "assistant": "assistant", "system": "system", "developer": "system"}

_TEXT_PARTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "reasoning_text": "text",
    "summary_text": "text",
    "refusal": "refusal",
}
# What parts other than text are, as clients look for it in "does not support images".
_OTHER_PARTS = {"input_image": "images", "input_file": "files", "input_audio": "audio"}


@dataclass(slots=True)
class _Turn:
    """What the assistant said and did before another party's item."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)

    def to_message(self) -> ChatMessage | None:
        if not self.texts and not self.calls and not self.thoughts:
            return None
        return ChatMessage(
            "assistant",
            "\n".join(self.texts),
            tool_calls=tuple(self.calls) or None,
            reasoning="\n".join(self.thoughts) or None,
        )


def read_input(fields: Fields) -> tuple[ChatMessage, ...]:
    """Raises ApiError (400)."""
    value = fields.required("input")
    if isinstance(value, str):
        return (ChatMessage("user", check_text(value, "input")),)
    reader = _InputReader()
    # One place less than the wire has, for the instructions.
    read_list(value, "input", items_max=CHAT_MESSAGES_MAX - 1, read=reader.read)
    messages = reader.finish()
    if not messages:
        raise invalid("input is empty: there is nothing to answer", "input", code="empty_array")
    return messages


class _InputReader:
    def __init__(self) -> None:
        self._messages: list[ChatMessage] = []
        self._turn = _Turn()

    def finish(self) -> tuple[ChatMessage, ...]:
        self._end_turn()
        return tuple(self._messages)

    def read(self, value: Any, path: str) -> None:
        item = object_of(value, path)
        kind = item.raw("type") or "message"
        if kind == "message":
            self._read_message(item)
        elif kind == "function_call":
            self._read_call(item)
        elif kind == "function_call_output":
            self._end_turn()
            text = _read_content(item, "output")
            self._messages.append(ChatMessage("tool", text, tool_call_id=_name(item, "call_id")))
        elif kind == "reasoning":
            self._read_reasoning(item)
        elif kind == "item_reference":
            raise unsupported(
                f"{path}: responses are not stored, so none of their items can be referred to: "
                "send the item itself",
                path,
            )
        else:
            raise unsupported(
                f"{path}: items of type {str(kind)[:64]} are not supported", f"{path}.type"
            )

    def _read_message(self, item: Fields) -> None:
        role = item.required("role")
        if not isinstance(role, str) or role not in _ROLES:
            path = item.path("role")
            raise invalid(f"{path} is one of {', '.join(_ROLES)}", path)
        text = _read_content(item, "content")
        if role == "assistant":
            if self._turn.calls:
                self._end_turn()
            self._turn.texts.append(text)
        else:
            self._end_turn()
            self._messages.append(ChatMessage(_ROLES[role], text))

    def _read_call(self, item: Fields) -> None:
        path = item.path("arguments")
        text = check_text(item.raw("arguments") or "{}", path)
        try:
            parse_object(text.encode())
        except ApiError:
            raise invalid(f"{path} must be a JSON object as text", path) from None
        self._turn.calls.append(ToolCall(_name(item, "call_id"), _name(item, "name"), text))
        if len(self._turn.calls) > TOOL_CALLS_MAX:
            raise invalid(f"one turn has at most {TOOL_CALLS_MAX} calls", "input")

    def _read_reasoning(self, item: Fields) -> None:
        """The text if there is one, and else its summary."""
        if self._turn.texts or self._turn.calls:
            self._end_turn()
        for name in ("content", "summary"):
            text = _read_content(item, name) if item.raw(name) else ""
            if text:
                self._turn.thoughts.append(text)
                return

    def _end_turn(self) -> None:
        message = self._turn.to_message()
        if message is not None:
            self._messages.append(message)
            self._turn = _Turn()


def _read_content(item: Fields, name: str) -> str:
    value, path = item.required(name), item.path(name)
    if isinstance(value, list):
        return "\n".join(read_list(value, path, items_max=CHAT_MESSAGES_MAX, read=_read_part))
    return check_text(value, path)


def _read_part(value: Any, path: str) -> str:
    part = object_of(value, path)
    kind = part.required("type")
    name = _TEXT_PARTS.get(kind) if isinstance(kind, str) else None
    if name is not None:
        return check_text(part.required(name), part.path(name))
    known = _OTHER_PARTS.get(kind) if isinstance(kind, str) else None
    raise unsupported(
        f"this model does not support {known or 'content parts that are no text'}",
        part.path("type"),
    )


def _name(item: Fields, name: str) -> str:
    return item.text(name, chars_max=NAME_CHARS_MAX)


def object_of(value: Any, path: str) -> Fields:
    if not isinstance(value, dict):
        raise invalid(f"{path} must be an object", path, code="invalid_type")
    return Fields(value, path)
