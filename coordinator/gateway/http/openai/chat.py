"""POST /v1/chat/completions: the next message of a conversation."""

from typing import Any

from coordinator.gateway.errors import ApiError, invalid, unsupported
from coordinator.gateway.http.openai.forms import ChatForm, FormNames
from coordinator.gateway.http.openai.generation import GenerationCall
from coordinator.gateway.http.openai.sampling import NO_TOOLS, read_sampling, read_streaming
from coordinator.gateway.http.routing_params import read_routing
from coordinator.gateway.http.strict_json import Fields, check_text, read_list
from coordinator.gateway.orders import GenerationOrder, check_text_size
from protocol.generation import ChatMessage, GenerationInput
from protocol.limits import CHAT_MESSAGES_MAX

# `developer` is OpenAI's newer word for `system`, which is the one that models were taught.
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


NAMES = FormNames("chatcmpl", "chat.completion", "chat.completion.chunk")


def read_chat(fields: Fields) -> GenerationCall:
    """Raises ApiError (400, 413)."""
    return GenerationCall(
        (read_order(fields),), read_streaming(fields), NAMES, lambda _: ChatForm()
    )


def read_order(fields: Fields) -> GenerationOrder:
    """Raises ApiError (400, 413)."""
    routing = read_routing(fields)
    sampling = read_sampling(fields)
    messages = _read_messages(fields)
    size = sum(len(message.content.encode()) for message in messages)
    check_text_size(size, "messages")
    job_input = GenerationInput(messages=messages, **sampling.to_arguments())
    return GenerationOrder(routing, job_input, size)


def _read_messages(fields: Fields) -> tuple[ChatMessage, ...]:
    messages = read_list(
        fields.required("messages"), "messages", items_max=CHAT_MESSAGES_MAX, read=_read_message
    )
    if not messages:
        raise invalid("messages is empty: there is nothing to answer", "messages")
    return messages


def _read_message(value: Any, path: str) -> ChatMessage:
    if not isinstance(value, dict):
        raise invalid(f"{path} must be an object", path, code="invalid_type")
    fields = Fields(value, path)
    role = fields.required("role")
    if role in ("tool", "function"):
        raise unsupported(NO_TOOLS, f"{path}.role")
    if not isinstance(role, str) or role not in _ROLES:
        raise invalid(f"{path}.role is one of {', '.join(_ROLES)}", f"{path}.role")
    if fields.raw("tool_calls"):
        raise unsupported(NO_TOOLS, f"{path}.tool_calls")
    # Clients replay what they were sent: an answer may have had no text.
    is_silent = role == "assistant" and fields.raw("content") is None
    content = "" if is_silent else fields.required("content")
    if isinstance(content, list):
        parts = read_list(content, f"{path}.content", items_max=CHAT_MESSAGES_MAX, read=_read_part)
        # Joined as other servers do it, or the words of two parts would become one.
        return ChatMessage(_ROLES[role], "\n".join(parts))
    return ChatMessage(_ROLES[role], check_text(content, f"{path}.content"))


def _read_part(value: Any, path: str) -> str:
    """The text of one content part; the market's models read nothing else."""
    if not isinstance(value, dict):
        raise invalid(f"{path} must be an object", path, code="invalid_type")
    part = Fields(value, path)
    if part.required("type") != "text":
        raise _not_text(path)
    return check_text(part.required("text"), f"{path}.text")


def _not_text(path: str) -> ApiError:
    return unsupported("only content parts of type text are supported", f"{path}.type")
