"""Which of the named chat formats a model's template speaks, read off the template's own marks."""

from dataclasses import dataclass

from protocol.chat_formats import CHAT_FORMATS, DEFAULT_CHAT_FORMAT, ChatFormat


@dataclass(frozen=True, slots=True)
class ModelChat:
    """How a model chats. `knows_tools` says that its template shows tools in `name`'s form; if not,
    tools are shown to it by a system text. `reasons` says that its template knows reasoning."""

    name: str
    knows_tools: bool
    reasons: bool

    @property
    def format(self) -> ChatFormat:
        return CHAT_FORMATS[self.name]


def read_model_chat(template: str) -> ModelChat:
    name = _tool_format(template) if "tools" in template else None
    chosen = name or DEFAULT_CHAT_FORMAT
    reasons = CHAT_FORMATS[chosen].reasoning_close in template
    return ModelChat(chosen, knows_tools=name is not None, reasons=reasons)


def _tool_format(template: str) -> str | None:
    """None for a form that is not in the table: such a model is shown tools in the default one."""
    if "<tool_call>" in template and "<function=" not in template and "<arg_key>" not in template:
        return "hermes"
    if "[TOOL_CALLS]" in template and "[ARGS]" not in template:
        return "mistral"
    if '{"name": function name, "parameters":' in template or "<|python_tag|>" in template:
        return "llama3_json"
    return None
