"""From a generation input to prompt tokens: the model's own chat template and tokenizer.

Inputs come from strangers: each way in which one can be wrong is an EngineRefusal. The texts of
messages and tools are data and never become a steering token. A raw `prompt` is the client's whole
word to the model, and may spell them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capanode.engines.base import EngineRefusal
from capanode.engines.chat_format import read_model_chat
from capanode.engines.chat_messages import ChatReader
from capanode.engines.chat_template import ChatTemplate, read_template
from capanode.engines.control_marks import BREAK, ControlMarks
from capanode.engines.detokenize import TokenBytes
from capanode.engines.tokenizer import BoundedTokenizer, load_tokenizer
from capanode.engines.weights import read_optional_json
from protocol.errors import Code
from protocol.features import Feature
from protocol.generation import GenerationInput

_SPECIAL_TOKENS = ("bos_token", "eos_token", "pad_token")


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an input is to the model. `token_ids` are the prompt and the prefix. The answer's text
    begins with `opened`, where the template has opened its reasoning; `is_midway` says that it goes
    on with a text of the prompt."""

    token_ids: list[int]
    prefix_count: int
    opened: str = ""
    is_midway: bool = False


class PromptReader:
    """Turns inputs into token ids for one model."""

    def __init__(self, model_dir: Path, *, context_tokens: int, vocab_size: int) -> None:
        """Raises ModelLoadError."""
        tokenizer = load_tokenizer(model_dir)
        source = read_template(model_dir)
        self.chat = None if source is None else read_model_chat(source)
        marks = frozenset() if self.chat is None else self.chat.format.marks
        self.token_bytes = TokenBytes(tokenizer, visible=marks)
        self._tokenizer = BoundedTokenizer(
            tokenizer, tokens_max=context_tokens, token_chars_max=self.token_bytes.longest
        )
        self._template = None
        if source is not None and self.chat is not None:
            reader = ChatReader(self.chat, ControlMarks(tokenizer, source))
            config = read_optional_json(model_dir / "tokenizer_config.json")
            special = {name: _token_text(config.get(name)) for name in _SPECIAL_TOKENS}
            self._template = ChatTemplate(source, special, reader)
        self._context_tokens = context_tokens
        self._vocab_size = vocab_size

    @property
    def features(self) -> tuple[str, ...]:
        if self.chat is None:
            return ()
        reasoning = (Feature.REASONING,) if self.chat.reasons else ()
        return (Feature.CHAT, Feature.TOOLS, *reasoning)

    def read(self, job_input: GenerationInput) -> Prompt:
        """Raises EngineRefusal."""
        opened = ""
        if job_input.messages:
            rendered = self._render(job_input)
            opened = "" if job_input.continues_final_message else self._opened(rendered)
            prompt = self._encode_pieces(rendered.split(BREAK))
        elif job_input.prompt is not None:
            prompt = self._tokenizer.encode(job_input.prompt, adds_special=True)
        else:
            prompt = list(job_input.prompt_tokens)
        tokens = [*prompt, *job_input.prefix_tokens]
        self._check_tokens(tokens)
        return Prompt(
            tokens,
            len(job_input.prefix_tokens),
            opened=opened,
            is_midway=job_input.continues_final_message,
        )

    def _check_tokens(self, tokens: list[int]) -> None:
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

    def _render(self, job_input: GenerationInput) -> str:
        """The prompt as the model's template spells it; no longer than what can be tokenized."""
        if self._template is None:
            raise EngineRefusal(
                "this model has no chat template: give a prompt", code=Code.INVALID_INPUT
            )
        self._check_chars(_message_chars(job_input))
        return self._template.render(job_input, self._check_chars)

    def _encode_pieces(self, pieces: list[str]) -> list[int]:
        """Each piece apart; a piece has a token or more, so that too many are too long."""
        tokens: list[int] = []
        for piece in filter(None, pieces):
            tokens += self._tokenizer.encode(piece, adds_special=False)
            if len(tokens) > self._context_tokens:
                self._check_tokens(tokens)
        return tokens

    def _opened(self, rendered: str) -> str:
        assert self.chat is not None
        mark = self.chat.format.reasoning_open
        if not self.chat.reasons or not rendered.rstrip().endswith(mark):
            return ""
        return rendered[rendered.rindex(mark) :]

    def _check_chars(self, chars: int) -> None:
        """What must be too long is neither rendered nor tokenized."""
        if chars > self._tokenizer.chars_max:
            raise EngineRefusal(
                "the messages have {chars} characters or more; the model takes {limit} tokens",
                code=Code.PROMPT_TOO_LONG,
                chars=chars,
                limit=self._context_tokens,
            )


def given_chars(job_input: GenerationInput) -> int:
    """How much text an input brings."""
    return _message_chars(job_input) + len(job_input.prompt or "")


def _message_chars(job_input: GenerationInput) -> int:
    messages = sum(
        len(message.content)
        + len(message.reasoning or "")
        + sum(len(call.arguments) for call in message.tool_calls or ())
        for message in job_input.messages
    )
    tools = sum(len(tool.description) + len(tool.parameters) for tool in job_input.tools)
    return messages + tools


def _token_text(value: Any) -> str:
    """A special token, which configs spell as text or as an object."""
    if isinstance(value, Mapping):
        value = value.get("content")
    return value if isinstance(value, str) else ""
