"""From a generation input to prompt tokens: the model's own chat template and tokenizer.

Templates come with the model and run in jinja's immutable sandbox, in the worker's own. Inputs come
from strangers: each way in which one can be wrong is an EngineRefusal.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from capanode.engines.base import EngineRefusal, ModelLoadError
from capanode.engines.detokenize import TokenBytes
from capanode.engines.tokenizer import load_tokenizer
from capanode.engines.weights import read_optional_json
from protocol.errors import Code
from protocol.payload import ChatMessage, GenerationInput


class PromptReader:
    """Turns inputs into token ids for one model."""

    def __init__(self, model_dir: Path, *, context_tokens: int, vocab_size: int) -> None:
        self._tokenizer = load_tokenizer(model_dir)
        self.token_bytes = TokenBytes(self._tokenizer)
        self._template = _load_template(model_dir)
        config = read_optional_json(model_dir / "tokenizer_config.json")
        self._names = {
            name: _token_text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")
        }
        self._context_tokens = context_tokens
        self._vocab_size = vocab_size

    def read(self, job_input: GenerationInput) -> list[int]:
        """The prompt with the tokens already answered after it. Raises EngineRefusal."""
        if job_input.messages:
            prompt = self._encode(self._render(job_input.messages), adds_special=False)
        elif job_input.prompt is not None:
            prompt = self._encode(job_input.prompt, adds_special=True)
        else:
            prompt = list(job_input.prompt_tokens)
        tokens = [*prompt, *job_input.prefix_tokens]
        if not tokens:
            raise EngineRefusal("the prompt has no tokens", code=Code.INVALID_INPUT)
        if len(tokens) >= self._context_tokens:
            self._refuse_length(f"{len(tokens)} tokens")
        if max(tokens) >= self._vocab_size:
            raise EngineRefusal("a token id is not in the vocabulary", code=Code.INVALID_INPUT)
        return tokens

    def _render(self, messages: Sequence[ChatMessage]) -> str:
        if self._template is None:
            raise EngineRefusal(
                "this model has no chat template: give a prompt", code=Code.INVALID_INPUT
            )
        plain = [{"role": message.role, "content": message.content} for message in messages]
        try:
            return self._template.render(
                messages=plain, add_generation_prompt=True, tools=None, **self._names
            )
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise EngineRefusal(
                f"the model's chat template refuses these messages: {str(error)[:200]}",
                code=Code.INVALID_INPUT,
            ) from error

    def _encode(self, text: str, *, adds_special: bool) -> list[int]:
        # No token is longer than this: what must be too long is not tokenized at all, as that would
        # take seconds in which nobody else's answer goes on.
        if len(text) > self._context_tokens * self.token_bytes.longest:
            self._refuse_length(f"{len(text)} characters")
        # A panic in the tokenizer's Rust code is a BaseException: the worker's boundary takes it.
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=adds_special).ids
        return ids

    def _refuse_length(self, size: str) -> NoReturn:
        raise EngineRefusal(
            f"the prompt has {size}; the model takes {self._context_tokens} tokens with the answer",
            code=Code.PROMPT_TOO_LONG,
        )


def _load_template(model_dir: Path) -> Template | None:
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
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals["raise_exception"] = _raise_exception
    environment.filters["tojson"] = _to_json
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise ModelLoadError(f"the chat template is wrong: {error}") from error


def _raise_exception(message: str) -> NoReturn:
    raise TemplateError(message)


def _to_json(value: object, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _token_text(value: Any) -> str:
    """A special token, which configs spell as text or as an object."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""
