"""The messages of a chat."""

from typing import Any

from coordinator.gateway.errors import ApiError, invalid, unsupported
from coordinator.gateway.http.openai.tools import read_calls, read_name
from coordinator.gateway.http.strict_json import Fields, check_text, read_list
from protocol.generation import ChatMessage
from protocol.limits import CHAT_MESSAGES_MAX

# `developer` is OpenAI's newer word for `system`, which is the one that models were taught, and
# `function` the older one for `tool`.
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}

# What parts other than text are, as clients look for it in "does not support images".
_PARTS = {
    "image_url": "images",
    "input_image": "images",
    "image": "images",
    "input_audio": "audio",
    "audio_url": "audio",
    "video_url": "video",
    "file": "files",
    "input_file": "files",
}


def read_messages(fields: Fields) -> tuple[ChatMessage, ...]:
    """Raises ApiError (400)."""
    value = fields.required("messages")
    messages = read_list(value, "messages", items_max=CHAT_MESSAGES_MAX, read=_read_message)
    if not messages:
        raise invalid(
            "messages is empty: there is nothing to answer", "messages", code="empty_array"
        )
    return messages


def is_prefill(fields: Fields) -> bool:
    """Whether the answer shall go on with the last message, which is the assistant's.

    Otherwise a last message of the assistant is a finished turn, and the answer is a further one.
    Raises ApiError (400). The messages have been read.
    """
    messages = fields.raw("messages")
    last = messages[-1]
    path = f"messages[{len(messages) - 1}]"
    # Mistral's and DeepSeek's name, and Qwen's, for a message.
    marked = any(Fields(last, path).flag(name) for name in ("prefix", "partial"))
    asked = bool(fields.flag("continue_final_message"))
    opens_turn = fields.flag("add_generation_prompt")
    if not (asked or marked):
        if opens_turn is False:
            raise unsupported(
                "add_generation_prompt: false is for continue_final_message: true",
                "add_generation_prompt",
            )
        return False
    param = "continue_final_message" if asked else path
    if opens_turn:
        raise invalid("a message that goes on opens no turn", "add_generation_prompt")
    if last.get("role") != "assistant" or last.get("tool_calls"):
        raise invalid("only a text of the assistant can be continued, as the last message", param)
    return True


def _read_message(value: Any, path: str) -> ChatMessage:
    if not isinstance(value, dict):
        raise invalid(f"{path} must be an object", path, code="invalid_type")
    message = Fields(value, path)
    role = message.required("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"{path}.role is one of {', '.join(_ROLES)}", f"{path}.role")
    for name in ("images", "audio"):
        if message.raw(name):
            raise _not_text(name, message.path(name))
    content = _read_content(message, is_optional=role == "assistant")
    is_assistant = role == "assistant"
    return ChatMessage(
        _ROLES[role],
        content,
        tool_calls=(read_calls(message) or None) if is_assistant else None,
        tool_call_id=_read_name(message, "tool_call_id"),
        name=_read_name(message, "name"),
        reasoning=_read_reasoning(message) if is_assistant else None,
    )


def _read_content(message: Fields, *, is_optional: bool) -> str:
    """Clients replay what they were sent: an answer may have had no text."""
    content, path = message.raw("content"), message.path("content")
    if content is None and is_optional:
        return ""
    content = message.required("content")
    if isinstance(content, list):
        parts = read_list(content, path, items_max=CHAT_MESSAGES_MAX, read=_read_part)
        # Joined as other servers do it, or the words of two parts would become one.
        return "\n".join(parts)
    return check_text(content, path)


def _read_part(value: Any, path: str) -> str:
    """The text of one content part; the market's models read nothing else."""
    if isinstance(value, str):
        return check_text(value, path)
    if not isinstance(value, dict):
        raise invalid(f"{path} must be an object", path, code="invalid_type")
    part = Fields(value, path)
    kind = part.required("type")
    if kind not in ("text", "input_text", "output_text", "refusal"):
        known = _PARTS.get(kind) if isinstance(kind, str) else None
        raise _not_text(known or "content parts that are no text", f"{path}.type")
    name = "refusal" if kind == "refusal" else "text"
    return check_text(part.required(name), f"{path}.{name}")


def _read_name(message: Fields, name: str) -> str | None:
    value = message.raw(name)
    return None if value is None else read_name(value, message.path(name))


def _read_reasoning(message: Fields) -> str | None:
    """What the model was shown to have thought, under either name; other forms are replays of what
    only their server reads."""
    for name in ("reasoning_content", "reasoning"):
        value = message.raw(name)
        if isinstance(value, str) and value:
            return check_text(value, message.path(name))
    return None


def _not_text(what: str, path: str) -> ApiError:
    return unsupported(f"this model does not support {what}", path)
