"""Changing one setting in a configuration file that a person wrote, and leaving the rest as it is.

The file is edited as text, because comments and order are its owner's; that the edit did what it
should, and nothing else, is checked by reading the result.
"""

import json
import re
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

from protocol.programs.settings import SettingError

# Lines of a list that is written over several.
_VALUE_LINES_MAX = 200
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def set_in_text(text: str, keys: Sequence[str], literal: str) -> str:
    """The text with the value at `keys` (nested tables, then the name) set to a TOML literal.

    Raises SettingError if that cannot be done without a person.
    """
    *tables, name = keys
    before = _parse(text)
    wanted = _parse(f"{_key_text(name)} = {literal}")[name]
    for edited in _edits(text.splitlines(), tuple(tables), name, literal):
        candidate = "\n".join(edited) + "\n"
        try:
            after = _parse(candidate)
        except tomllib.TOMLDecodeError:
            continue
        if after == _with(before, tuple(keys), wanted):
            return candidate
    raise SettingError(f"{'.'.join(keys)} cannot be set in this file by a program: edit it by hand")


def _edits(
    lines: list[str], tables: tuple[str, ...], name: str, literal: str
) -> Iterator[list[str]]:
    """Ways to write it: over the value that is there, over its commented example, or anew."""
    new = f"{_key_text(name)} = {literal}"
    begin, end = _section(lines, tables)
    if begin is None:
        header = ".".join(map(_key_text, tables))
        yield [*lines, "", f"[{header}]", new]
        return
    says = re.compile(rf"""\s*["']?{re.escape(name)}["']?\s*=""")
    for start in (n for n in range(begin, end) if says.match(lines[n])):
        for last in range(start + 1, min(end, start + _VALUE_LINES_MAX) + 1):
            yield [*lines[:start], new, *lines[last:]]
    example = re.compile(rf"\s*#\s*{re.escape(name)}\s*=")
    for start in (n for n in range(begin, end) if example.match(lines[n])):
        yield [*lines[:start], new, *lines[start + 1 :]]
    yield [*lines[:begin], new, *lines[begin:]]


def _section(lines: list[str], tables: tuple[str, ...]) -> tuple[int | None, int]:
    """Where the lines of a table begin and end; None if it is not there. Without tables it is what
    stands before the first of them."""
    headers = [n for n, line in enumerate(lines) if line.lstrip().startswith("[")]
    if not tables:
        return 0, next(iter(headers), len(lines))
    for place, number in enumerate(headers):
        if _header_keys(lines[number]) == tables:
            following = headers[place + 1] if place + 1 < len(headers) else len(lines)
            return number + 1, following
    return None, len(lines)


def _header_keys(line: str) -> tuple[str, ...]:
    """The nested keys of `[a."b"]`; empty for what is none."""
    keys = []
    try:
        plain: Any = tomllib.loads(line)
    except tomllib.TOMLDecodeError:
        return ()
    while isinstance(plain, dict) and plain:
        ((key, plain),) = plain.items()
        keys.append(key)
    return tuple(keys)


def _parse(text: str) -> dict[str, Any]:
    return tomllib.loads(text, parse_float=str)


def _with(plain: dict[str, Any], keys: tuple[str, ...], value: Any) -> dict[str, Any]:
    first, *rest = keys
    if not rest:
        return plain | {first: value}
    inner = plain.get(first, {})
    return plain | {first: _with(inner if isinstance(inner, dict) else {}, tuple(rest), value)}


def _key_text(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)
