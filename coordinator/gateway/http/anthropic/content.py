"""The messages of a request: turns of content blocks become a chat's messages."""

import json
from typing import Any

from coordinator.gateway.errors import ApiError, invalid, unsupported
from coordinator.gateway.http.strict_json import Fields, check_text, read_list
from protocol.generation import ChatMessage, ToolCall
from protocol.limits import CHAT_MESSAGES_MAX, FORMAT_CHARS_MAX, NAME_CHARS_MAX, TOOL_CALLS_MAX

_ROLES = ("user", "assistant")

# What blocks that are no text are, as clients look for it in "does not support images".
_OTHER_BLOCKS = {"image": "images", "document": "documents", "container_upload": "files"}


def read_system(fields: Fields) -> tuple[ChatMessage, ...]:
    """Raises ApiError (400)."""
    value = fields.raw("system")
    if value is None:
        return ()
    if isinstance(value, str):
        text = check_text(value, "system")
    else:
        blocks = read_list(value, "system", items_max=CHAT_MESSAGES_MAX, read=_read_text_block)
        text = "\n".join(blocks)
    return (ChatMessage("system", text),) if text else ()


def read_messages(fields: Fields) -> tuple[ChatMessage, ...]:
    """Raises ApiError (400)."""
    value = fields.required("messages")
    turns = read_list(value, "messages", items_max=CHAT_MESSAGES_MAX, read=_read_turn)
    messages = tuple(message for turn in turns for message in turn)
    if not messages:
        raise invalid("messages is empty: there is nothing to answer", "messages")
    if len(messages) >= CHAT_MESSAGES_MAX:
        raise invalid(f"messages has at most {CHAT_MESSAGES_MAX - 1} messages", "messages")
    return messages


def _read_turn(value: Any, path: str) -> tuple[ChatMessage, ...]:
    turn = object_of(value, path)
    role = turn.required("role")
    if role not in _ROLES:
        raise invalid(f"{path}.role is one of {', '.join(_ROLES)}", f"{path}.role")
    content = turn.required("content")
    if isinstance(content, str):
        return (ChatMessage(role, check_text(content, turn.path("content"))),)
    read = _read_assistant if role == "assistant" else _read_user
    return read(content, turn.path("content"))


def _read_user(value: Any, path: str) -> tuple[ChatMessage, ...]:
    """Each tool result is a message, and so is the text between and after them."""
    blocks = read_list(value, path, items_max=CHAT_MESSAGES_MAX, read=_read_user_block)
    messages: list[ChatMessage] = []
    texts: list[str] = []
    for block in blocks:
        if isinstance(block, str):
            texts.append(block)
            continue
        messages += _user_text(texts)
        texts = []
        messages.append(block)
    return (*messages, *_user_text(texts))


def _user_text(texts: list[str]) -> tuple[ChatMessage, ...]:
    return (ChatMessage("user", "\n".join(texts)),) if texts else ()


def _read_user_block(value: Any, path: str) -> str | ChatMessage:
    block = object_of(value, path)
    if block.required("type") != "tool_result":
        return _read_text_block(value, path)
    content = block.raw("content")
    if isinstance(content, list):
        content_path = block.path("content")
        texts = read_list(content, content_path, items_max=CHAT_MESSAGES_MAX, read=_read_text_block)
        content = "\n".join(texts)
    text = check_text(content or "", block.path("content"))
    if block.flag("is_error"):
        # A chat template has no place for it beside the text.
        text = f"Error: {text}"
    return ChatMessage("tool", text, tool_call_id=_name(block, "tool_use_id"))


def _read_assistant(value: Any, path: str) -> tuple[ChatMessage, ...]:
    texts: list[str] = []
    calls: list[ToolCall] = []
    thoughts: list[str] = []

    def read(value: Any, path: str) -> None:
        block = object_of(value, path)
        kind = block.required("type")
        if kind == "tool_use":
            calls.append(_read_tool_use(block))
        elif kind == "thinking":
            thoughts.append(check_text(block.required("thinking"), block.path("thinking")))
        elif kind != "redacted_thinking":
            texts.append(_read_text_block(value, path))

    read_list(value, path, items_max=CHAT_MESSAGES_MAX, read=read)
    if len(calls) > TOOL_CALLS_MAX:
        raise invalid(f"{path} has at most {TOOL_CALLS_MAX} blocks of type tool_use", path)
    message = ChatMessage(
        "assistant",
        "\n".join(texts),
        tool_calls=tuple(calls) or None,
        reasoning="\n".join(thoughts) or None,
    )
    return (message,)


def _read_tool_use(block: Fields) -> ToolCall:
    value, path = block.required("input"), block.path("input")
    if not isinstance(value, dict):
        raise invalid(f"{path} must be an object", path, code="invalid_type")
    arguments = check_text(json.dumps(value, ensure_ascii=False), path)
    if len(arguments) > FORMAT_CHARS_MAX:
        raise invalid(f"{path} has at most {FORMAT_CHARS_MAX} characters as text", path)
    return ToolCall(_name(block, "id"), _name(block, "name"), arguments)


def _read_text_block(value: Any, path: str) -> str:
    """The text of a block; the market's models read nothing else."""
    block = object_of(value, path)
    kind = block.required("type")
    if kind == "text":
        return check_text(block.required("text"), block.path("text"))
    source = block.fields("source") if kind == "document" else None
    if source is not None and source.raw("type") == "text":
        return check_text(source.required("data"), source.path("data"))
    raise _not_text(kind, block.path("type"))


def _not_text(kind: Any, path: str) -> ApiError:
    known = _OTHER_BLOCKS.get(kind) if isinstance(kind, str) else None
    return unsupported(
        f"this model does not support {known or 'content blocks other than text here'}", path
    )


def _name(block: Fields, name: str) -> str:
    return block.text(name, chars_max=NAME_CHARS_MAX)


def object_of(value: Any, path: str) -> Fields:
    if not isinstance(value, dict):
        raise invalid(f"{path} must be an object", path, code="invalid_type")
    return Fields(value, path)
