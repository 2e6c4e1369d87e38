"""A model's chat template: comes with the model and runs in jinja's immutable sandbox, in the
worker's own. It says how a chat is spelled, and sees nothing but the chat: no clock, no chance."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from capanode.engines.base import EngineRefusal, ModelLoadError
from capanode.engines.chat_messages import ChatReader, to_json
from capanode.engines.control_marks import END_OF_FINAL_MESSAGE
from capanode.engines.weights import read_optional_json
from protocol.errors import Code
from protocol.generation import GenerationInput

# Marks for trainers around the assistant's words.
_GENERATION_TAG = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")

_RESERVED = frozenset(
    {
        "messages",
        "tools",
        "add_generation_prompt",
        "continue_final_message",
        "bos_token",
        "eos_token",
        "pad_token",
        "raise_exception",
    }
)


def read_template(model_dir: Path) -> str | None:
    """The chat template from its own file or the tokenizer's config. Raises ModelLoadError."""
    path = model_dir / "chat_template.jinja"
    if path.exists():
        source: object = path.read_text(encoding="utf-8")
    else:
        source = read_optional_json(model_dir / "tokenizer_config.json").get("chat_template")
    if source is None:
        return None
    if isinstance(source, list):  # Several by name; "default" is the one for plain chat.
        named = {
            item.get("name"): item.get("template") for item in source if isinstance(item, dict)
        }
        source = named.get("default")
    if not isinstance(source, str):
        raise ModelLoadError("the chat template is not text")
    return source


class ChatTemplate:
    """Spells chats for one model."""

    def __init__(self, source: str, special: Mapping[str, str], reader: ChatReader) -> None:
        """`special` are the tokens that the tokenizer's config names. Raises ModelLoadError."""
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
        )
        environment.globals["raise_exception"] = _raise_exception
        environment.filters["tojson"] = to_json
        try:
            self._template = environment.from_string(_GENERATION_TAG.sub("", source))
        except TemplateError as error:
            raise ModelLoadError(f"the chat template is wrong: {error}") from error
        self._special, self._reader = special, reader

    def render(self, job_input: GenerationInput, check_chars: Callable[[int], None]) -> str:
        """The prompt, with the marks of `capanode.engines.control_marks` in it. `check_chars` is
        told how long it is so far, and raises if that is too long. Raises EngineRefusal."""
        arguments = self._reader.arguments(job_input.template_arguments)
        if _RESERVED & set(arguments):
            raise EngineRefusal(
                "template_arguments names a variable that messages and tools decide",
                code=Code.INVALID_INPUT,
            )
        continues = job_input.continues_final_message
        variables: dict[str, Any] = {
            **self._special,
            **arguments,
            "messages": self._reader.messages(job_input),
            "tools": self._reader.tools(job_input),
            "add_generation_prompt": not continues,
        }
        text = self._generate(variables, check_chars)
        if not continues:
            return text
        before, mark, _ = text.rpartition(END_OF_FINAL_MESSAGE)
        if not mark:
            raise EngineRefusal(
                "the model's chat template does not show the final message: it cannot be continued",
                code=Code.INVALID_INPUT,
            )
        content = job_input.messages[-1].content
        # A template may show a message more than once.
        shown = before.replace(END_OF_FINAL_MESSAGE, "")
        return shown + content[len(content.rstrip()) :]

    def _generate(self, variables: Mapping[str, Any], check_chars: Callable[[int], None]) -> str:
        parts: list[str] = []
        chars = 0
        try:
            for part in self._template.generate(**variables):
                chars += len(part)
                check_chars(chars)
                parts.append(part)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError, RecursionError):
            # Not `from` it: what a template says of messages may quote them.
            raise EngineRefusal(
                "the model's chat template refuses these messages", code=Code.INVALID_INPUT
            ) from None
        return "".join(parts)


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)
