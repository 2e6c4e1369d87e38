"""An answer's events whether or not it needs a parser: without one its text is all there is."""

from collections.abc import Sequence

from coordinator.gateway.chat.events import AnswerEvent, TextDelta
from coordinator.gateway.chat.parser import AnswerParser
from protocol.endings import API_FINISH_REASONS, Finish
from protocol.payload import Chunk


class AnswerReader:
    """Reads one answer."""

    def __init__(self, parser: AnswerParser | None) -> None:
        self._parser = parser

    def add(self, chunks: Sequence[Chunk]) -> list[AnswerEvent]:
        """The events of the next chunks. Raises RemoteProtocolError if their data is no scores."""
        if self._parser is not None:
            return self._parser.add(chunks)
        text = "".join(chunk.text for chunk in chunks)
        return [TextDelta(text)] if text else []

    def finish(self, finish: Finish) -> tuple[list[AnswerEvent], str]:
        """The last events, and why the answer ended: `stop`, `length` or `tool_calls`."""
        if self._parser is not None:
            return self._parser.finish(finish)
        return [], API_FINISH_REASONS[finish]
