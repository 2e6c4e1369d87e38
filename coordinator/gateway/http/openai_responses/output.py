"""The output items of a response, from the events of an answer: as what a stream says of them, and
as what they are in the end."""

from collections.abc import Iterable, Mapping
from typing import Any

from coordinator.gateway.chat.events import (
    AnswerEvent,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStart,
)
from coordinator.gateway.http.event_text import named_event

Plain = dict[str, Any]

# By type of item: its one content part, and the events of its text.
_PARTS = {"message": "output_text", "reasoning": "reasoning_text"}


class OutputItems:
    """One item is open at a time. `items` are those that were begun, whole once they are closed.
    `namespaces` has the namespace of functions that are in one."""

    def __init__(self, job_id: str, namespaces: Mapping[str, str]) -> None:
        self.items: list[Plain] = []
        self._namespaces = namespaces
        self._job_id = job_id
        self._is_open = False
        self._text: list[str] = []
        self._number = 0

    def event(self, kind: str, **content: object) -> bytes:
        """The next event of the stream."""
        event = {"type": kind, "sequence_number": self._number, **content}
        self._number += 1
        return named_event(kind, event)

    def take(self, events: Iterable[AnswerEvent]) -> bytes:
        """The events of the stream."""
        return b"".join(map(self._take, events))

    def close(self, status: str = "completed") -> bytes:
        """End the item that is open."""
        if not self._is_open:
            return b""
        item, text = self.items[-1], "".join(self._text)
        self._is_open, self._text = False, []
        item["status"] = status
        done = self._close_call if item["type"] == "function_call" else self._close_text
        written = done(item, text)
        return written + self.event("response.output_item.done", output_index=self._at(), item=item)

    def _take(self, event: AnswerEvent) -> bytes:
        if isinstance(event, TextDelta):
            return self._add_text("message", event.text)
        if isinstance(event, ReasoningDelta):
            return self._add_text("reasoning", event.text)
        if isinstance(event, ToolCallStart):
            item = {"call_id": event.id, "name": event.name, "arguments": ""}
            if event.name in self._namespaces:
                item["namespace"] = self._namespaces[event.name]
            return self.close() + self._open("function_call", "fc", item)
        if isinstance(event, ToolCallArguments):
            self._text.append(event.text)
            return self._of_item("response.function_call_arguments.delta", delta=event.text)
        return b""

    def _add_text(self, kind: str, text: str) -> bytes:
        opening = b""
        if not self._is_open or self.items[-1]["type"] != kind:
            opening = self.close() + self._open_text(kind)
        self._text.append(text)
        more: Plain = {"logprobs": []} if kind == "message" else {}
        name = f"response.{_PARTS[kind]}.delta"
        return opening + self._of_item(name, content_index=0, delta=text, **more)

    def _open_text(self, kind: str) -> bytes:
        if kind == "message":
            opening = self._open(kind, "msg", {"role": "assistant", "content": []})
        else:
            opening = self._open(kind, "rs", {"summary": [], "content": []})
        part = _part(kind, "")
        return opening + self._of_item("response.content_part.added", content_index=0, part=part)

    def _open(self, kind: str, prefix: str, fields: Plain) -> bytes:
        item = {
            "id": f"{prefix}_{self._job_id}{len(self.items):02x}",
            "type": kind,
            "status": "in_progress",
            **fields,
        }
        self.items.append(item)
        self._is_open = True
        return self.event("response.output_item.added", output_index=self._at(), item=item)

    def _close_text(self, item: Plain, text: str) -> bytes:
        kind = item["type"]
        part = _part(kind, text)
        item["content"] = [part]
        more: Plain = {"logprobs": []} if kind == "message" else {}
        name = f"response.{_PARTS[kind]}.done"
        return self._of_item(name, content_index=0, text=text, **more) + self._of_item(
            "response.content_part.done", content_index=0, part=part
        )

    def _close_call(self, item: Plain, text: str) -> bytes:
        item["arguments"] = text
        return self._of_item(
            "response.function_call_arguments.done", name=item["name"], arguments=text
        )

    def _of_item(self, kind: str, **content: object) -> bytes:
        return self.event(kind, item_id=self.items[-1]["id"], output_index=self._at(), **content)

    def _at(self) -> int:
        return len(self.items) - 1


def _part(kind: str, text: str) -> Plain:
    if kind == "message":
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}
    return {"type": "reasoning_text", "text": text}
