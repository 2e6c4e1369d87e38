"""An answer's chunks as events: reasoning, text and tool calls, read by the model's chat format.

However the text was cut, the events are the same but for where their texts are cut. A call that is
malformed before its arguments begin is text; one whose arguments break off keeps what there was of
them. White space around calls and after reasoning belongs to the format, and is dropped.
"""

import string
from collections.abc import Callable, Iterable
from enum import Enum

from coordinator.gateway.chat.call_reader import CallReader, CallState
from coordinator.gateway.chat.events import (
    AnswerEvent,
    ReasoningDelta,
    TextDelta,
    ToolCallArguments,
    ToolCallStart,
)
from protocol.chat_formats import CHAT_FORMATS, DEFAULT_CHAT_FORMAT, ChatFormat
from protocol.codec import decode
from protocol.endings import API_FINISH_REASONS, Finish
from protocol.generation import GenerationInput, TokenScores, ToolChoice
from protocol.limits import TOOL_CALLS_MAX
from protocol.payload import Chunk

# A model may write line breaks for ever: those that are further from a mark than this are text.
_SPACES_MAX = 256


class _State(Enum):
    START = "start"
    REASONING = "reasoning"
    TEXT = "text"
    # Between the mark that opens calls and the first one, and between two of them.
    CALLS = "calls"
    CALL = "call"
    # After a call that a mark must close.
    CALL_END = "call_end"


class AnswerParser:
    """Reads one answer. `make_id` makes the id of the answer's call with that index.

    `tools` are the functions that the model was told of, or empty: then nothing is a call. Without
    `is_parallel`, calls after the first are dropped.
    """

    def __init__(
        self,
        chat_format: ChatFormat,
        make_id: Callable[[int], str],
        *,
        tools: frozenset[str] = frozenset(),
        is_parallel: bool = True,
        reads_reasoning: bool = False,
    ) -> None:
        self._format = chat_format
        self._make_id = make_id
        self._tools = tools
        self._calls_max = len(tools) and (TOOL_CALLS_MAX if is_parallel else 1)
        self._state = _State.START if reads_reasoning else _State.TEXT
        self._held = ""
        # What was read as the beginning of calls; it is text if none follows.
        self._opening = ""
        self._skips_space = False
        # An answer without marks is a call only from its beginning.
        self._has_text = False
        self._calls = 0
        self._call_has_begun = False
        self._reader = CallReader(chat_format.arguments_key)
        self._events: list[AnswerEvent] = []
        self._steps = {
            _State.START: self._read_start,
            _State.REASONING: self._read_reasoning,
            _State.TEXT: self._read_text,
            _State.CALLS: self._read_calls,
            _State.CALL: self._read_call,
            _State.CALL_END: self._read_call_end,
        }

    def add(self, chunks: Iterable[Chunk]) -> list[AnswerEvent]:
        """The events of the next chunks. Raises RemoteProtocolError if their data is no scores."""
        for chunk in chunks:
            if chunk.text:
                self._held += chunk.text
                self._read()
            if chunk.data:
                self._events.append(decode(TokenScores, chunk.data))
        return self._take_events()

    def finish(self, finish: Finish) -> tuple[list[AnswerEvent], str]:
        """The last events, and why the answer ended: `stop`, `length` or `tool_calls`."""
        if self._state is _State.REASONING:
            self._emit(ReasoningDelta, self._held)
        elif self._state in (_State.START, _State.TEXT):
            self._emit(TextDelta, self._held)
        elif self._state is _State.CALL and not self._call_has_begun:
            self._emit(TextDelta, self._opening + self._reader.raw)
        elif self._state is _State.CALLS and not self._calls:
            self._emit(TextDelta, self._opening + self._held)
        has_calls = self._calls > 0 or self._call_has_begun
        reason = API_FINISH_REASONS[finish]
        is_cut = reason != API_FINISH_REASONS[Finish.STOP]
        return self._take_events(), reason if is_cut or not has_calls else "tool_calls"

    def _take_events(self) -> list[AnswerEvent]:
        events, self._events = self._events, []
        return events

    def _emit(self, kind: type[TextDelta] | type[ReasoningDelta], text: str) -> None:
        if kind is TextDelta and text and not text.isspace():
            self._has_text = True
        if text:
            last = self._events[-1] if self._events else None
            if isinstance(last, TextDelta | ReasoningDelta) and type(last) is kind:
                self._events[-1] = kind(last.text + text)
            else:
                self._events.append(kind(text))

    def _read(self) -> None:
        """Read what is held as far as it is certain what it is."""
        while self._held:
            before = (self._state, len(self._held))
            self._steps[self._state]()
            if (self._state, len(self._held)) == before:
                return

    def _read_start(self) -> None:
        mark, text = self._format.reasoning_open, _lstrip(self._held)
        if text.startswith(mark):
            self._go(_State.REASONING, text[len(mark) :])
        elif not mark.startswith(text):
            self._state = _State.TEXT

    def _read_reasoning(self) -> None:
        self._skip_space()
        mark = self._format.reasoning_close
        reasoning, found, rest = self._held.partition(mark)
        if found:
            self._emit(ReasoningDelta, _rstrip(reasoning))
            self._go(_State.TEXT, rest)
        else:
            self._emit(ReasoningDelta, self._take_certain(mark))

    def _read_text(self) -> None:
        self._skip_space()
        mark = self._format.call_open
        if not self._tools or (self._has_text and not mark):
            self._emit(TextDelta, self._held)
            self._held = ""
        elif mark:
            self._read_text_to(mark)
        elif text := _lstrip(self._held):
            if text[0] == "{":
                self._state, self._opening = _State.CALLS, ""
            else:
                self._has_text = True
                self._emit(TextDelta, self._held)
                self._held = ""

    def _read_text_to(self, mark: str) -> None:
        text, found, rest = self._held.partition(mark)
        if found:
            kept = _rstrip(text)
            self._emit(TextDelta, kept)
            self._opening = text[len(kept) :] + mark
            self._held, self._state = rest, _State.CALLS
        else:
            self._emit(TextDelta, self._take_certain(mark))

    def _read_calls(self) -> None:
        """Up to the `{` of the next call, or to the end of the calls."""
        rest = self._held.lstrip(string.whitespace + self._separators())
        self._opening += self._held[: len(self._held) - len(rest)]
        self._held = rest
        if rest.startswith("{"):
            self._state, self._call_has_begun = _State.CALL, False
            self._reader = CallReader(self._format.arguments_key)
        elif rest and self._calls and not self._format.call_close:
            self._has_text = True
            self._go(_State.TEXT, rest)
        elif rest:
            self._fall_back(rest)

    def _separators(self) -> str:
        if self._format.is_list:
            return "[,]"
        return "" if self._format.call_close else ";,"

    def _read_call(self) -> None:
        reader = self._reader
        arguments, rest = reader.take(self._held)
        self._held = ""
        if reader.state is CallState.HEAD:
            return
        # Without a mark any object looks like a call: only a name that was given makes it one.
        is_call = bool(self._format.call_open) or reader.name in self._tools
        if reader.state is CallState.FAILED or not (self._call_has_begun or is_call):
            self._fall_back(reader.raw)
            return
        if self._calls < self._calls_max:
            if not self._call_has_begun:
                call_id = self._make_id(self._calls)
                self._events.append(ToolCallStart(self._calls, call_id, reader.name))
            if arguments:
                self._events.append(ToolCallArguments(self._calls, arguments))
        self._call_has_begun = True
        if reader.state is CallState.DONE:
            self._calls += 1
            self._opening, self._held, self._call_has_begun = "", rest, False
            self._state = _State.CALL_END if self._format.call_close else _State.CALLS

    def _read_call_end(self) -> None:
        """Up to the mark that closes the call. What stands before it is no text."""
        mark = self._format.call_close
        _, found, rest = self._held.partition(mark)
        if found:
            self._go(_State.TEXT, rest)
        else:
            self._held = self._held[len(self._held) - _begun(self._held, mark) :]

    def _fall_back(self, rest: str) -> None:
        """What looked like a call is text, and a call may still follow."""
        self._emit(TextDelta, self._opening)
        self._has_text = True
        self._opening, self._held, self._state = "", rest, _State.TEXT

    def _go(self, state: _State, rest: str) -> None:
        """The space after a mark is not part of what follows."""
        self._state, self._held, self._skips_space = state, rest, True

    def _skip_space(self) -> None:
        if self._skips_space:
            self._held = self._held.lstrip()
            self._skips_space = not self._held

    def _take_certain(self, mark: str) -> str:
        """What cannot be the beginning of the mark, or of the space before it."""
        sure = _rstrip(self._held[: len(self._held) - _begun(self._held, mark)])
        self._held = self._held[len(sure) :]
        return sure


def parser_of(
    job_input: GenerationInput, chat_format: str, make_id: Callable[[int], str], *, reasons: bool
) -> AnswerParser | None:
    """What reads the answer to a chat; None if its text is all that there is to it."""
    has_tools = job_input.tool_choice is not ToolChoice.NONE
    tools = frozenset(tool.name for tool in job_input.tools if has_tools)
    is_scored = job_input.logprobs is not None or job_input.prompt_logprobs is not None
    if not tools and not reasons and not is_scored:
        return None
    return AnswerParser(
        CHAT_FORMATS.get(chat_format) or CHAT_FORMATS[DEFAULT_CHAT_FORMAT],
        make_id,
        tools=tools,
        is_parallel=job_input.parallel_tool_calls,
        reads_reasoning=reasons,
    )


def _begun(text: str, mark: str) -> int:
    """How much of the mark stands at the text's end."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((size for size in sizes if text.endswith(mark[:size])), 0)


def _lstrip(text: str) -> str:
    return text[:_SPACES_MAX].lstrip() + text[_SPACES_MAX:]


def _rstrip(text: str) -> str:
    near = max(0, len(text) - _SPACES_MAX)
    return text[:near] + text[near:].rstrip()
