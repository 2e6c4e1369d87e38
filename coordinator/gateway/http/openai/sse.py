"""Server-sent events as OpenAI's clients read them. Pure: text in, bytes out.

Every streamed token passes here, so an event is two constant halves around the token's JSON text.
"""

from dataclasses import dataclass
from json import JSONEncoder

DONE = b"data: [DONE]\n\n"

# Only CR and LF end a line of an event stream, but many clients split at these as well.
_LINE_BREAKS = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}

_encode = JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


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
    """How one endpoint writes a choice: `opening` and `closing` go around the JSON text of a token,
    `first` is a whole choice that opens the stream (empty for none), and `last` is a template for
    the one that ends it, around the JSON text of the finish reason."""

    first: str
    opening: str
    closing: str
    last: tuple[str, str]


CHAT_CHOICE = ChoiceShape(
    first='{"index":0,"delta":{"role":"assistant","content":""},"logprobs":null,'
    '"finish_reason":null}',
    opening='{"index":0,"delta":{"content":',
    closing='},"logprobs":null,"finish_reason":null}',
    last=('{"index":0,"delta":{},"logprobs":null,"finish_reason":', "}"),
)
TEXT_CHOICE = ChoiceShape(
    first="",
    opening='{"index":0,"text":',
    closing=',"logprobs":null,"finish_reason":null}',
    last=('{"index":0,"text":"","logprobs":null,"finish_reason":', "}"),
)


class Events:
    """Encodes the events of one stream."""

    def __init__(self, envelope: Envelope, shape: ChoiceShape, *, include_usage: bool) -> None:
        self._shape = shape
        self._include_usage = include_usage
        head = _encode(envelope.to_plain()).removesuffix("}")
        self._head = f'data: {head},"choices":['
        # With usage asked for, every event carries the key; null until the last one.
        self._tail = '],"usage":null}\n\n' if include_usage else "]}\n\n"
        self._before = self._head + shape.opening
        self._after = shape.closing + self._tail

    def first(self) -> bytes:
        """What opens the stream, before any text."""
        return self._event(self._shape.first) if self._shape.first else b""

    def text(self, text: str) -> bytes:
        """One piece of the answer."""
        encoded = _encode(text)
        if not text.isascii():
            encoded = encoded.translate(_LINE_BREAKS)
        return (self._before + encoded + self._after).encode()

    def last(self, finish_reason: str, usage: dict[str, int]) -> bytes:
        """Everything from the last token on."""
        before, after = self._shape.last
        events = self._event(before + _encode(finish_reason) + after)
        if self._include_usage:
            events += f'{self._head}],"usage":{_encode(usage)}}}\n\n'.encode()
        return events + DONE

    def _event(self, choice: str) -> bytes:
        return (self._head + choice + self._tail).encode()
