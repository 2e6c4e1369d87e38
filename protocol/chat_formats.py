"""How a model's text spells tool calls and reasoning: the named forms that offers refer to.

A node delivers a generation's text as the model wrote it. A client reads calls and reasoning out of
it by the `chat_format` of the offer. The marks below are part of that text, also where they are
special tokens of the model.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """`call_open` and `call_close` stand around a call, with any white space inside and between.

    Without `call_open` an answer is a call if it begins with `{`; without `call_close` the calls
    are the rest of the answer. A call is a JSON object with the function's `name` and, under
    `arguments_key`, an object; with `is_list` all calls stand in one JSON list.

    Reasoning comes first, if it comes. An answer that starts inside it starts with
    `reasoning_open`, also where the template has opened it.
    """

    call_open: str
    call_close: str
    arguments_key: str = "arguments"
    is_list: bool = False
    reasoning_open: str = "<think>"
    reasoning_close: str = "</think>"

    @property
    def marks(self) -> frozenset[str]:
        marks = (self.call_open, self.call_close, self.reasoning_open, self.reasoning_close)
        return frozenset(filter(None, marks))


# The form of a model that was trained on none: its node tells it of the tools in this one.
DEFAULT_CHAT_FORMAT = "hermes"

CHAT_FORMATS = {
    "hermes": ChatFormat("<tool_call>", "</tool_call>"),
    "llama3_json": ChatFormat("", "", arguments_key="parameters"),
    "mistral": ChatFormat(
        "[TOOL_CALLS]",
        "",
        is_list=True,
        reasoning_open="[THINK]",
        reasoning_close="[/THINK]",
    ),
}
