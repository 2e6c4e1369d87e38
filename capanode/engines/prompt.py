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
from capanode.engines.chat_format import read_model_chat
from capanode.engines.detokenize import TokenBytes
from capanode.engines.tokenizer import BoundedTokenizer, load_tokenizer
from capanode.engines.weights import read_optional_json
from protocol.errors import Code
from protocol.features import Feature
from protocol.generation import ChatMessage, GenerationInput


class PromptReader:
    """Turns inputs into token ids for one model."""

    def __init__(self, model_dir: Path, *, context_tokens: int, vocab_size: int) -> None:
        tokenizer = load_tokenizer(model_dir)
        self.token_bytes = TokenBytes(tokenizer)
        self._tokenizer = BoundedTokenizer(
            tokenizer, tokens_max=context_tokens, token_chars_max=self.token_bytes.longest
        )
        source = _read_template(model_dir)
        self._template = None if source is None else _compile_template(source)
        self.chat = None if source is None else read_model_chat(source)
        config = read_optional_json(model_dir / "tokenizer_config.json")
        self._names = {
            name: _token_text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token")
        }
        self._context_tokens = context_tokens
        self._vocab_size = vocab_size

    @property
    def features(self) -> tuple[str, ...]:
        if self.chat is None:
            return ()
        return (Feature.CHAT, Feature.REASONING) if self.chat.reasons else (Feature.CHAT,)

    def read(self, job_input: GenerationInput) -> list[int]:
        """The prompt with the tokens already answered after it. Raises EngineRefusal."""
        if job_input.messages:
            rendered = self._render(job_input.messages)
            prompt = self._tokenizer.encode(rendered, adds_special=False)
        elif job_input.prompt is not None:
            prompt = self._tokenizer.encode(job_input.prompt, adds_special=True)
        else:
            prompt = list(job_input.prompt_tokens)
        tokens = [*prompt, *job_input.prefix_tokens]
        if not tokens:
            raise EngineRefusal("the prompt has no tokens", code=Code.INVALID_INPUT)
        if len(tokens) >= self._context_tokens:
            raise EngineRefusal(
                "the prompt has {tokens} tokens; the model takes {limit} tokens with the answer",
                code=Code.PROMPT_TOO_LONG,
                tokens=len(tokens),
                limit=self._context_tokens,
            )
        if max(tokens) >= self._vocab_size:
            raise EngineRefusal("a token id is not in the vocabulary", code=Code.INVALID_INPUT)
        return tokens

    def _render(self, messages: Sequence[ChatMessage]) -> str:
        """The prompt as the model's template spells it; no longer than what can be tokenized."""
        if self._template is None:
            raise EngineRefusal(
                "this model has no chat template: give a prompt", code=Code.INVALID_INPUT
            )
        self._check_chars(sum(len(message.content) for message in messages))
        plain = [{"role": message.role, "content": message.content} for message in messages]
        parts: list[str] = []
        chars = 0
        try:
            for part in self._template.generate(
                messages=plain, add_generation_prompt=True, tools=None, **self._names
            ):
                chars += len(part)
                self._check_chars(chars)
                parts.append(part)
        except (TemplateError, TypeError, ValueError, ArithmeticError, LookupError):
            # Not `from` it: what a template says of messages may quote them.
            raise EngineRefusal(
                "the model's chat template refuses these messages", code=Code.INVALID_INPUT
            ) from None
        return "".join(parts)

    def _check_chars(self, chars: int) -> None:
        """What must be too long is neither rendered nor tokenized."""
        if chars > self._tokenizer.chars_max:
            raise EngineRefusal(
                "the messages have {chars} characters or more; the model takes {limit} tokens",
                code=Code.PROMPT_TOO_LONG,
                chars=chars,
                limit=self._context_tokens,
            )


def _read_template(model_dir: Path) -> str | None:
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


def _compile_template(source: str) -> Template:
    """Raises ModelLoadError."""
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
