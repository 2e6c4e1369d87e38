"""Server-sent events as OpenAI's clients read them. Pure: text in, bytes out.

Every streamed token passes here, so the event of a plain token is two constant halves around the
token's JSON text.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from coordinator.gateway.http.event_text import event_json

DONE = b"data: [DONE]\n\n"

Usage = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Envelope:
    """What every event and every whole answer of one request repeats."""

    id: str
    object_name: str
    created: int
    model: str
    system_fingerprint: str

    def to_plain(self) -> dict[str, object]:
        return {
            "id": self.id,
            "object": self.object_name,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
        }


@dataclass(frozen=True, slots=True)
class ChoiceShape:
    """How one endpoint writes a piece of text in a choice: `opening` and `closing` go around its
    JSON text."""

    opening: str
    closing: str


CHAT_CHOICE = ChoiceShape('"delta":{"content":', "}")
TEXT_CHOICE = ChoiceShape('"text":', "")


class ChoiceEvents:
    """Encodes the events of one choice. With `include_usage` every event has the key: null until
    the stream's end, or what `count` said last."""

    def __init__(
        self, envelope: Envelope, shape: ChoiceShape, index: int = 0, *, include_usage: bool
    ) -> None:
        self._head = _head(envelope) + f'{{"index":{index},'
        self._before = self._head + shape.opening
        self._middle = shape.closing + ',"logprobs":null,"finish_reason":null}'
        self._tail = '],"usage":null}\n\n' if include_usage else "]}\n\n"
        self._after = self._middle + self._tail

    def count(self, usage: Usage) -> None:
        """What the next events say of usage."""
        self._tail = f'],"usage":{event_json(usage)}}}\n\n'
        self._after = self._middle + self._tail

    def text(self, text: str) -> bytes:
        """A piece of text."""
        return (self._before + event_json(text) + self._after).encode()

    def piece(
        self,
        content: Mapping[str, object],
        *,
        logprobs: Mapping[str, object] | None = None,
        finish_reason: str | None = None,
    ) -> bytes:
        """Any other event: `content` stands before the two keys that every choice has."""
        choice = {**content, "logprobs": logprobs, "finish_reason": finish_reason}
        return (self._head + event_json(choice).removeprefix("{") + self._tail).encode()


def closing_events(envelope: Envelope, usage: Usage | None) -> bytes:
    """What ends a stream; `usage` is None where it was not asked for."""
    if usage is None:
        return DONE
    return f'{_head(envelope)}],"usage":{event_json(usage)}}}\n\n'.encode() + DONE


def _head(envelope: Envelope) -> str:
    return f'data: {event_json(envelope.to_plain()).removesuffix("}")},"choices":['
