"""How chats and completions write a choice, whole and in events."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from coordinator.gateway.chat.answer import AnswerParts
from coordinator.gateway.chat.events import (
    AnswerEvent,
    ReasoningDelta,
    TextDelta,
    ToolCallStart,
)
from coordinator.gateway.http.openai.scores import TextScores, chat_scores
from coordinator.gateway.http.openai.sse import CHAT_CHOICE, TEXT_CHOICE, ChoiceShape
from protocol.generation import TokenScore, TokenScores

# A piece of a choice, and its `logprobs`.
Piece = tuple[dict[str, Any], dict[str, Any] | None]


@dataclass(frozen=True, slots=True)
class FormNames:
    """What an endpoint's answers are called."""

    id_prefix: str
    whole: str
    chunk: str


class ChoiceForm(Protocol):
    """Writes one choice of an answer."""

    @property
    def shape(self) -> ChoiceShape: ...

    def first(self) -> Piece | None:
        """What opens its stream."""
        ...

    def pieces(self, events: Sequence[AnswerEvent]) -> Iterator[Piece]: ...

    def last(self) -> dict[str, Any]:
        """The piece that brings the finish reason."""
        ...

    def whole(self, parts: AnswerParts) -> dict[str, Any]: ...


@dataclass(slots=True)
class ChatForm:
    """A chat's choice."""

    shows_reasoning: bool = True
    shows_scores: bool = False
    shape: ChoiceShape = CHAT_CHOICE

    def first(self) -> Piece:
        return _delta({"role": "assistant", "content": ""}), None

    def last(self) -> dict[str, Any]:
        return _delta({})

    def pieces(self, events: Sequence[AnswerEvent]) -> Iterator[Piece]:
        """Scores go with the piece before them."""
        waiting: dict[str, Any] | None = None
        for event in events:
            if isinstance(event, TokenScores):
                if not event.is_prompt:
                    yield waiting or _delta({}), chat_scores(event.tokens)
                    waiting = None
                continue
            if waiting is not None:
                yield waiting, None
            is_hidden = isinstance(event, ReasoningDelta) and not self.shows_reasoning
            waiting = None if is_hidden else _delta(_delta_of(event))
        if waiting is not None:
            yield waiting, None

    def whole(self, parts: AnswerParts) -> dict[str, Any]:
        has_text = bool(parts.text) or not parts.calls
        message: dict[str, Any] = {
            "role": "assistant",
            "content": parts.text if has_text else None,
            "refusal": None,
        }
        if parts.reasoning and self.shows_reasoning:
            message |= _reasoning(parts.reasoning)
        if parts.calls:
            message["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in parts.calls
            ]
        logprobs = chat_scores(parts.scores) if self.shows_scores else None
        return {"message": message, "logprobs": logprobs}


def _delta(delta: dict[str, Any]) -> dict[str, Any]:
    return {"delta": delta}


def _reasoning(text: str) -> dict[str, Any]:
    # The older name and the newer one: clients read one of them.
    return {"reasoning_content": text, "reasoning": text}


def _delta_of(event: AnswerEvent) -> dict[str, Any]:
    if isinstance(event, TextDelta):
        return {"content": event.text}
    if isinstance(event, ReasoningDelta):
        return _reasoning(event.text)
    assert not isinstance(event, TokenScores), "scores are no delta"
    if isinstance(event, ToolCallStart):
        function = {"name": event.name, "arguments": ""}
        call = {"index": event.index, "id": event.id, "type": "function", "function": function}
    else:
        call = {"index": event.index, "function": {"arguments": event.text}}
    return {"tool_calls": [call]}


@dataclass(slots=True)
class TextForm:
    """A completion's choice. `echo` is the prompt to be repeated; with `echoes_scores` it comes
    from the scores of its tokens."""

    echo: str = ""
    echoes_scores: bool = False
    shows_scores: bool = False
    shape: ChoiceShape = TEXT_CHOICE
    _scores: TextScores = field(default_factory=TextScores)

    def first(self) -> Piece | None:
        return ({"text": self.echo}, None) if self.echo and not self.echoes_scores else None

    def last(self) -> dict[str, Any]:
        return {"text": ""}

    def pieces(self, events: Sequence[AnswerEvent]) -> Iterator[Piece]:
        text = ""
        for event in events:
            if isinstance(event, TextDelta):
                text += event.text
            elif isinstance(event, TokenScores):
                if event.is_prompt:
                    yield {"text": _spelled(event.tokens)}, self._write(event.tokens, True)
                else:
                    yield {"text": text}, self._write(event.tokens, False)
                    text = ""
        if text:
            yield {"text": text}, None

    def whole(self, parts: AnswerParts) -> dict[str, Any]:
        prompt = _spelled(parts.prompt_scores) if self.echoes_scores else self.echo
        logprobs: dict[str, Any] | None = None
        if self.shows_scores:
            before = self._scores.write(parts.prompt_scores, is_prompt=True)
            after = self._scores.write(parts.scores)
            logprobs = {name: before[name] + after[name] for name in after}
        return {"text": prompt + parts.text, "logprobs": logprobs}

    def _write(self, tokens: Sequence[TokenScore], is_prompt: bool) -> dict[str, Any] | None:
        return self._scores.write(tokens, is_prompt=is_prompt) if self.shows_scores else None


def _spelled(scores: Sequence[TokenScore]) -> str:
    return b"".join(score.piece for score in scores).decode(errors="replace")
