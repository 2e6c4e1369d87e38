"""What a worker prints, taken apart, bounded, and logged by the node.

The worker is not trusted: a line is at most so long, and so many a second are logged. JSON lines
are the worker's own log. Other lines come from native libraries, which may quote an input: once
jobs can have run they are counted and not repeated, but for the crash handler's.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

LINE_BYTES_MAX = 4_096
LINES_PER_S_MAX = 50
FIELDS_MAX = 16
VALUE_CHARS_MAX = 500

_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
# Names that the node's logger has other uses for.
_RESERVED = frozenset({"self", "event", "level", "timestamp"})
_LEVELS = frozenset({"debug", "info", "warning", "error"})
# What faulthandler and the loader print: places in code, no data.
_HARMLESS = re.compile(
    r'(Fatal Python error: [\w :-]+|\s*File "[^"]+", line \d+ in [\w<>.]+|bwrap: .*'
    r"|the sandbox could not be started: .*)"
)


@dataclass(frozen=True, slots=True)
class LogLine:
    level: str
    event: str
    fields: dict[str, Any]


class StderrLog:
    """Cuts the stream into lines and decides what is logged."""

    def __init__(self) -> None:
        self._rest = b""
        self._second = 0.0
        self._lines_in_second = 0
        self._suppressed = 0
        self.may_hold_content = False

    def feed(self, data: bytes, now_s: float) -> Iterator[LogLine]:
        *lines, self._rest = (self._rest + data).split(b"\n")
        # An endless line is cut; what follows counts as another one.
        if len(self._rest) > LINE_BYTES_MAX:
            lines.append(self._rest)
            self._rest = b""
        for line in lines:
            if now_s - self._second >= 1.0:
                self._second, self._lines_in_second = now_s, 0
            self._lines_in_second += 1
            # Counted before it is taken apart: a flood costs no parsing.
            is_shown = self._lines_in_second <= LINES_PER_S_MAX
            parsed = self._parse(line) if is_shown else None
            if parsed is None:
                self._suppressed += 1
            else:
                yield parsed

    def finish(self) -> Iterator[LogLine]:
        """The last, unfinished line, and how much was not shown."""
        last = self._parse(self._rest)
        if last is not None:
            yield last
        if self._suppressed:
            yield LogLine("info", "worker_lines_hidden", {"lines": self._suppressed})

    def _parse(self, line: bytes) -> LogLine | None:
        text = line[:LINE_BYTES_MAX].decode(errors="replace").rstrip()
        if text.startswith("{"):
            try:
                return _parse_record(json.loads(text))
            except (ValueError, RecursionError):
                return None
        if not text or (self.may_hold_content and not _HARMLESS.fullmatch(text)):
            return None
        return LogLine("info", "worker_printed", {"line": text[:VALUE_CHARS_MAX]})


def _parse_record(record: Any) -> LogLine | None:
    if type(record) is not dict:
        return None
    event, level = record.pop("event", ""), record.pop("level", "info")
    if type(event) is not str or type(level) is not str:
        return None
    if not _NAME.fullmatch(event) or level not in _LEVELS:
        return None
    fields = {}
    for name, value in list(record.items())[:FIELDS_MAX]:
        is_good_name = _NAME.fullmatch(name) and name not in _RESERVED
        if is_good_name and type(value) in (str, int, float, bool):
            fields[name] = value[:VALUE_CHARS_MAX] if type(value) is str else value
    return LogLine(level, event, fields)
