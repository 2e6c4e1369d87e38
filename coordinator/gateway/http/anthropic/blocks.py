"""The content blocks of a message, from the events of an answer: as what a stream says of them, and
as what they are in the end."""

import json
from collections.abc import Iterable
from typing import Any

from coordinator.gateway.chat.events import (
    AnswerEvent,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStart,
)
from coordinator.gateway.http.event_text import named_event

Block = dict[str, Any]


class MessageBlocks:
    """One block is open at a time. `blocks` are those that were begun, whole once they are closed.
    Without `shows_thinking` what the model thinks is left out."""

    def __init__(self, *, shows_thinking: bool) -> None:
        self.blocks: list[Block] = []
        self._shows_thinking = shows_thinking
        self._open_kind = ""
        self._parts: list[str] = []

    def take(self, events: Iterable[AnswerEvent]) -> bytes:
        """The events of the stream."""
        return b"".join(map(self._take, events))

    def close(self) -> bytes:
        """End the block that is open."""
        if not self._open_kind:
            return b""
        kind, text = self._open_kind, "".join(self._parts)
        self._open_kind, self._parts = "", []
        block = self.blocks[-1]
        if kind == "tool_use":
            block["input"] = _read_input(text)
        else:
            block[kind] = text
        stop = {"type": "content_block_stop", "index": len(self.blocks) - 1}
        return named_event("content_block_stop", stop)

    def _take(self, event: AnswerEvent) -> bytes:
        if isinstance(event, TextDelta):
            opening = self._open({"type": "text", "text": ""})
            return opening + self._add({"type": "text_delta", "text": event.text}, event.text)
        if isinstance(event, ReasoningDelta):
            if not self._shows_thinking:
                return b""
            opening = self._open({"type": "thinking", "thinking": "", "signature": ""})
            delta = {"type": "thinking_delta", "thinking": event.text}
            return opening + self._add(delta, event.text)
        if isinstance(event, ToolCallStart):
            block = {"type": "tool_use", "id": event.id, "name": event.name, "input": {}}
            return self.close() + self._open(block)
        if isinstance(event, ToolCallArguments):
            delta = {"type": "input_json_delta", "partial_json": event.text}
            return self._add(delta, event.text)
        return b""

    def _open(self, block: Block) -> bytes:
        """Begin a block, unless one of its kind is open."""
        if block["type"] == self._open_kind:
            return b""
        closing = self.close()
        start = {
            "type": "content_block_start",
            "index": len(self.blocks),
            "content_block": dict(block),
        }
        self.blocks.append(block)
        self._open_kind = block["type"]
        return closing + named_event("content_block_start", start)

    def _add(self, delta: Block, text: str) -> bytes:
        self._parts.append(text)
        event = {"type": "content_block_delta", "index": len(self.blocks) - 1, "delta": delta}
        return named_event("content_block_delta", event)


def _read_input(arguments: str) -> Block:
    """A call whose arguments are no JSON object, because the answer broke off, has none."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
