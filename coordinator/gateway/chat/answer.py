"""A whole answer, put together from its events."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from coordinator.gateway.chat.events import (
    AnswerEvent,
    ReasoningDelta,
    TextDelta,
    ToolCallStart,
)
from coordinator.gateway.chat.parser import AnswerParser
from protocol.endings import API_FINISH_REASONS, Finish
from protocol.generation import TokenScore, TokenScores, ToolCall
from protocol.payload import Chunk


@dataclass(slots=True)
class AnswerParts:
    """What an answer has; `finish_reason` is `stop`, `length` or `tool_calls`."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    prompt_scores: list[TokenScore] = field(default_factory=list)
    finish_reason: str = ""


def read_answer(
    parser: AnswerParser | None, chunks: Iterable[Chunk], finish: Finish
) -> AnswerParts:
    """Raises RemoteProtocolError if the node's scores are none."""
    if parser is None:
        text = "".join(chunk.text for chunk in chunks)
        return AnswerParts(text, finish_reason=API_FINISH_REASONS[finish])
    events = parser.add(chunks)
    last, reason = parser.finish(finish)
    return _put_together([*events, *last], reason)


def _put_together(events: list[AnswerEvent], finish_reason: str) -> AnswerParts:
    parts = AnswerParts(finish_reason=finish_reason)
    texts: dict[type[TextDelta] | type[ReasoningDelta], list[str]] = {
        TextDelta: [],
        ReasoningDelta: [],
    }
    calls: list[tuple[ToolCallStart, list[str]]] = []
    for event in events:
        if isinstance(event, TextDelta | ReasoningDelta):
            texts[type(event)].append(event.text)
        elif isinstance(event, ToolCallStart):
            calls.append((event, []))
        elif isinstance(event, TokenScores):
            (parts.prompt_scores if event.is_prompt else parts.scores).extend(event.tokens)
        else:
            calls[event.index][1].append(event.text)
    parts.text, parts.reasoning = "".join(texts[TextDelta]), "".join(texts[ReasoningDelta])
    parts.calls = [ToolCall(call.id, call.name, "".join(text)) for call, text in calls]
    return parts
