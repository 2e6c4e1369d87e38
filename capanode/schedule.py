"""When the owner lends the machine: windows of the week, in the time of a place.

mon-fri 22:00-08:00      over midnight, beginning on these days
sat,sun                  whole days
20:00-06:00              every day
"""

import re
from dataclasses import dataclass
from datetime import datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from protocol.programs.kinds import ValueKind, read_items

WINDOWS_MAX = 32
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_DAY_MINUTES = 24 * 60
_TIMES = re.compile(r"([0-2]?[0-9]):([0-5][0-9])-([0-2]?[0-9]):([0-5][0-9])")


@dataclass(frozen=True, slots=True)
class Window:
    """Minutes of the day; it ends on the next day if `end` is not after `begin`."""

    days: frozenset[int]
    begin: int
    end: int
    text: str

    def __str__(self) -> str:
        return self.text

    def holds(self, weekday: int, minute: int) -> bool:
        if self.end > self.begin:
            return weekday in self.days and self.begin <= minute < self.end
        is_tail = (weekday - 1) % len(_DAYS) in self.days and minute < self.end
        return is_tail or (weekday in self.days and minute >= self.begin)


def is_open(windows: tuple[Window, ...], at: datetime) -> bool:
    """Whether the owner lends the machine at this local time; always if there is no window."""
    minute = at.hour * 60 + at.minute
    return not windows or any(window.holds(at.weekday(), minute) for window in windows)


def find_zone(name: str) -> tzinfo | None:
    """None for the machine's own, which the system's rules of the day decide. Raises ValueError."""
    if not name:
        return None
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError("a time zone such as Europe/Berlin, known to this machine") from None


def read_windows(raw: Any) -> tuple[Window, ...]:
    """Raises ValueError with what was expected."""
    texts = read_items(raw, ";")
    if len(texts) > WINDOWS_MAX:
        raise ValueError(f"at most {WINDOWS_MAX} windows")
    return tuple(map(_read_window, texts))


def read_zone_name(raw: Any) -> str:
    if not isinstance(raw, str):
        raise ValueError("a time zone such as Europe/Berlin")
    find_zone(raw)
    return raw


def _read_window(text: str) -> Window:
    words = text.lower().split()
    times = _TIMES.fullmatch(words[-1]) if words else None
    day_words = words[:-1] if times else words
    if len(day_words) > 1 or not words:
        raise _wrong()
    days = _read_days(day_words[0]) if day_words else frozenset(range(len(_DAYS)))
    if times is None:
        return Window(days, 0, _DAY_MINUTES, text)
    begin, end = (60 * int(times[n]) + int(times[n + 1]) for n in (1, 3))
    if max(begin, end) > _DAY_MINUTES or begin == _DAY_MINUTES:
        raise _wrong()
    return Window(days, begin, end, text)


def _read_days(text: str) -> frozenset[int]:
    days: set[int] = set()
    for part in text.split(","):
        first, found, last = part.partition("-")
        if first not in _DAYS or (found and last not in _DAYS):
            raise _wrong()
        begin = _DAYS.index(first)
        length = (_DAYS.index(last) - begin) % len(_DAYS) + 1 if found else 1
        days.update((begin + n) % len(_DAYS) for n in range(length))
    return frozenset(days)


def _wrong() -> ValueError:
    return ValueError("windows such as `mon-fri 22:00-08:00`, `sat,sun` or `20:00-06:00`")


WINDOWS = ValueKind(read_windows, "windows of the week", is_list=True)
ZONE = ValueKind(read_zone_name, "a time zone")
