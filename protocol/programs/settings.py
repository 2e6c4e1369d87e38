"""How both programs read their settings: defaults < file < environment < flags, resolved once.

A program states its settings in one table of `Setting`s; file, environment, command line and the
comments in a new configuration file all come from it. Every value remembers where it came from, so
that an error, and `config show`, can say so.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.errors import CapaError
from protocol.limits import ADDRESS_CHARS_MAX, LIST_ITEMS_MAX, NAME_CHARS_MAX
from protocol.money import parse_credits

# A hand-written file has a few kilobytes; more is not a configuration.
_FILE_BYTES_MAX = 1024 * 1024

# Reads what TOML, the environment or a flag gives. Raises ValueError with what was expected.
Reader = Callable[[Any], Any]


class SettingError(CapaError):
    """A setting cannot be read; the message names it, where it came from and what was expected."""


@dataclass(frozen=True, slots=True)
class Setting:
    """`read` takes text, or what TOML makes of it; `default` is already read. `flag` is the command
    line's name where it is not the setting's own: lists are given once per item, in singular."""

    name: str
    default: Any
    read: Reader
    meaning: str
    example: str
    flag: str = ""

    @property
    def flag_text(self) -> str:
        return f"--{(self.flag or self.name).replace('_', '-')}"


@dataclass(frozen=True, slots=True)
class Resolved:
    """Every setting's value, and where it came from: `default`, `file …`, `flag …`."""

    values: Mapping[str, Any]
    sources: Mapping[str, str]


def resolve_settings(
    settings: Sequence[Setting],
    program: str,
    *,
    file: Path | None,
    env: Mapping[str, str],
    flags: Mapping[str, Any],
) -> Resolved:
    """Merge the sources of a program whose table has a `data_dir`.

    Variables are `PROGRAM_NAME`; without `file`, `program.toml` in the data directory is read if it
    exists. A flag that is None or empty was not given. Raises SettingError.
    """
    given = _from_environment(settings, program, env) | _from_flags(settings, flags)
    merged: _Values = {s.name: (s.default, "default") for s in settings} | given
    # Where the file lies must be known before it is read, so the file cannot move itself.
    path = file if file is not None else merged["data_dir"][0].expanduser() / f"{program}.toml"
    merged |= _from_file(settings, path, required=file is not None) | given
    return Resolved(
        {name: value for name, (value, _) in merged.items()},
        {name: source for name, (_, source) in merged.items()},
    )


def read_path(raw: Any) -> Path:
    if not isinstance(raw, str | Path) or not str(raw):
        raise ValueError("a path")
    return Path(raw).expanduser().absolute()


def read_text(raw: Any) -> str:
    if not isinstance(raw, str) or len(raw) > NAME_CHARS_MAX:
        raise ValueError(f"text of at most {NAME_CHARS_MAX} characters")
    return raw


def read_count(low: int, high: int) -> Reader:
    def read(raw: Any) -> int:
        # bool is an int in Python, but `queue_max = true` is a mistake.
        if isinstance(raw, str) and re.fullmatch(r"[0-9]{1,18}", raw):
            raw = int(raw)
        if type(raw) is not int or not low <= raw <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return raw

    return read


def read_choice(choices: Sequence[str]) -> Reader:
    def read(raw: Any) -> str:
        if raw not in choices:
            raise ValueError(f"one of {', '.join(choices)}")
        return str(raw)

    return read


def read_credits(raw: Any) -> int:
    """Nano-credits, from text or a TOML number (which arrives as its literal text)."""
    try:
        return parse_credits(str(raw))
    except ValueError:
        raise ValueError("an amount of credits such as 0.02") from None


def read_addresses(raw: Any) -> tuple[str, ...]:
    addresses = tuple(read_items(raw, ","))
    if not all(a.startswith("/") and len(a) <= ADDRESS_CHARS_MAX for a in addresses):
        raise ValueError("multiaddresses such as /ip4/0.0.0.0/tcp/4101")
    return addresses


def read_items(raw: Any, separator: str) -> list[str]:
    """A list of texts, or one text with separators. Raises ValueError."""
    if isinstance(raw, str):
        raw = [item.strip() for item in raw.split(separator) if item.strip()]
    if not isinstance(raw, list | tuple) or not all(isinstance(item, str) for item in raw):
        raise ValueError("a list of texts")
    if len(raw) > LIST_ITEMS_MAX:
        raise ValueError(f"at most {LIST_ITEMS_MAX} items")
    return list(raw)


_Values = dict[str, tuple[Any, str]]


def _from_environment(settings: Sequence[Setting], program: str, env: Mapping[str, str]) -> _Values:
    prefix = f"{program.upper()}_"
    known = {f"{prefix}{setting.name.upper()}": setting for setting in settings}
    values: _Values = {}
    for variable, text in env.items():
        if not variable.startswith(prefix) or not text:
            continue
        if variable not in known:
            raise SettingError(
                f"the environment sets {variable}, which is no setting{_suggest(variable, known)}"
            )
        setting, source = known[variable], f"environment {variable}"
        values[setting.name] = (_read(setting, text, source), source)
    return values


def _from_flags(settings: Sequence[Setting], flags: Mapping[str, Any]) -> _Values:
    known = {setting.name: setting for setting in settings}
    values: _Values = {}
    for name, raw in flags.items():
        if raw is None or raw in ([], ()):
            continue
        source = f"flag {known[name].flag_text}"
        values[name] = (_read(known[name], raw, source), source)
    return values


def _from_file(settings: Sequence[Setting], path: Path, *, required: bool) -> _Values:
    plain = _load_toml(path, required=required)
    known = {setting.name: setting for setting in settings}
    values: _Values = {}
    for name, raw in plain.items():
        if name not in known:
            raise SettingError(f"{path} sets {name}, which is no setting{_suggest(name, known)}")
        if name == "data_dir":
            raise SettingError(
                f"{path} sets data_dir, which decides where that file lies: use --data-dir"
            )
        source = f"file {path}"
        values[name] = (_read(known[name], raw, source), source)
    return values


def _load_toml(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        if required:
            raise SettingError(f"there is no configuration file {path}") from None
        return {}
    except OSError as error:
        raise SettingError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > _FILE_BYTES_MAX:
        raise SettingError(f"{path} is too large for a configuration file")
    try:
        # Prices must not pass through floats, so numbers with a point stay text.
        return tomllib.loads(data.decode(), parse_float=str)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingError(f"{path} is not valid TOML: {error}") from None


def _read(setting: Setting, raw: Any, source: str) -> Any:
    try:
        return setting.read(raw)
    except ValueError as error:
        raise SettingError(
            f"{setting.name} = {str(raw)[:100]!r} (from {source}): expected {error}"
        ) from None


def _suggest(name: str, known: Mapping[str, Setting]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; do you mean {close[0]}?" if close else "; see `config show` for all"
