"""Reads one tool call, a JSON object with a name and arguments, from text that arrives in pieces.

Arguments are passed on while they arrive. A call counts from the moment that its name is known and
its arguments begin; what is no call until then is text.
"""

import json
import re
from dataclasses import dataclass, field
from enum import Enum

from protocol.limits import NAME_CHARS_MAX

# A call whose keys come in another order, or with more of them, is read once it is whole; what is
# longer than this is no call.
_CALL_CHARS_MAX = 32 * 1_024
_HEAD_CHARS_MAX = 512

_IN_TEXT = re.compile(r'[^"\\]*')
_OUTSIDE = re.compile(r'[^"{}\[\]]*')


class CallState(Enum):
    """How far a reader has come."""

    HEAD = "head"
    ARGUMENTS = "arguments"
    TAIL = "tail"
    DONE = "done"
    FAILED = "failed"


@dataclass(slots=True)
class _Nesting:
    """How deep in a JSON value the text is. It checks brackets and quotes, and no more."""

    depth: int = 0
    in_string: bool = False
    _escaped: bool = False

    def end_of_value(self, text: str, start: int) -> int:
        """Read on from `start`; where the value ends, or -1 if it goes on."""
        position = start
        while position < len(text):
            if self._escaped:
                self._escaped = False
                position += 1
                continue
            pattern = _IN_TEXT if self.in_string else _OUTSIDE
            found = pattern.match(text, position)
            assert found is not None, "the patterns match the empty text, too"
            position = found.end()
            if position == len(text):
                break
            sign = text[position]
            position += 1
            if sign == "\\":
                self._escaped = True
            elif sign == '"':
                self.in_string = not self.in_string
            else:
                self.depth += 1 if sign in "{[" else -1
                if self.depth <= 0:
                    return position
        return -1


@dataclass(slots=True)
class CallReader:
    """`name` is known once the state is past HEAD; `raw` is all that was read until then, and is
    text if the state is FAILED."""

    arguments_key: str
    state: CallState = CallState.HEAD
    name: str = ""
    raw: str = ""
    _whole: _Nesting = field(default_factory=_Nesting)
    _arguments: _Nesting = field(default_factory=_Nesting)

    def take(self, text: str) -> tuple[str, str]:
        """(more of the arguments, what comes after the call). The first sign is `{`."""
        if self.state is CallState.HEAD:
            return self._take_head(text)
        if self.state is CallState.ARGUMENTS:
            return self._take_arguments(text, 0)
        return "", self._take_tail(text)

    def _take_head(self, text: str) -> tuple[str, str]:
        start = len(self.raw)
        self.raw += text
        # Of the same text each time, or the answer would depend on how it was cut.
        found = self._head().match(self.raw, 0, _HEAD_CHARS_MAX)
        if found is not None:
            self.name = _read_name(found[1])
            self.state = CallState.ARGUMENTS if self.name else CallState.FAILED
            return self._take_arguments(self.raw, found.end()) if self.name else ("", "")
        end = self._whole.end_of_value(self.raw, start)
        if max(end, len(self.raw) if end < 0 else 0) > _CALL_CHARS_MAX:
            self.state = CallState.FAILED
        elif end >= 0:
            return self._read_whole(self.raw[:end]), self.raw[end:]
        return "", ""

    def _head(self) -> re.Pattern[str]:
        key = re.escape(self.arguments_key)
        return re.compile(
            r'\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"' + key + r'"\s*:\s*(?=\{)'
        )

    def _read_whole(self, raw: str) -> str:
        """A call whose head has another form, now that it is whole."""
        self.state = CallState.FAILED
        try:
            call = json.loads(raw)
        except (ValueError, RecursionError):
            return ""
        name, arguments = call.get("name"), call.get(self.arguments_key, {})
        if not isinstance(name, str) or not isinstance(arguments, str | dict):
            return ""
        # Some models write the object as text.
        text = arguments if isinstance(arguments, str) else json.dumps(arguments)
        if 0 < len(name) <= NAME_CHARS_MAX and _is_utf8(name) and _is_utf8(text):
            self.name, self.state = name, CallState.DONE
            return text
        return ""

    def _take_arguments(self, text: str, start: int) -> tuple[str, str]:
        end = self._arguments.end_of_value(text, start)
        if end < 0:
            return text[start:], ""
        self.state = CallState.TAIL
        self._whole = _Nesting(depth=1)
        return text[start:end], self._take_tail(text[end:])

    def _take_tail(self, text: str) -> str:
        end = self._whole.end_of_value(text, 0)
        if end < 0:
            return ""
        self.state = CallState.DONE
        return text[end:]


def _read_name(quoted: str) -> str:
    """Empty if it is none."""
    try:
        name = str(json.loads(quoted))
    except ValueError:
        return ""
    return name if len(name) <= NAME_CHARS_MAX and _is_utf8(name) else ""


def _is_utf8(text: str) -> bool:
    """Whether no half of a surrogate pair is in it, as JSON can spell one."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
