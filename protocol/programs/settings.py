"""How our programs read their settings: defaults < file < environment < flags, resolved once.

A program declares each setting once, as a field of one frozen dataclass:

    queue_max: int = setting(16, count(0, 4096, "jobs"), "Jobs per model that may wait.")

File, environment, command line, `config show`, the comments in a new configuration file and the
table in docs/operating.md all come from these fields. Every value remembers where it came from, so
that an error, and `config show`, can say so. docs/decisions/0008-settings-by-hand.md says why.
"""

import difflib
import json
import re
import stat
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from protocol.programs.commands import UsageError
from protocol.programs.kinds import KeyValueError, ValueKind

# A hand-written file has a few kilobytes; more is not a configuration.
_FILE_BYTES_MAX = 1024 * 1024

_METADATA = "setting"

C = TypeVar("C")


class SettingError(UsageError):
    """A setting cannot be read; the message names it, where it came from and what was expected."""


class InDataDir(NamedTuple):
    """A default that lies in the data directory, wherever that is."""

    derive: Callable[[Path], Any]
    name: str

    def __str__(self) -> str:
        return f"{self.name} in the data directory"


class Setting(NamedTuple):
    """One setting of a program. `default` is already read, or an InDataDir."""

    name: str
    default: Any
    kind: ValueKind
    meaning: str
    example: str
    flag: str
    also: str

    @property
    def default_text(self) -> str:
        if isinstance(self.default, InDataDir):
            return str(self.default)
        return self.kind.tell(self.default)


def setting(
    default: Any,
    kind: ValueKind,
    meaning: str,
    *,
    example: str = "",
    flag: str = "",
    also: str = "",
) -> Any:
    """A field of a program's settings.

    `example` is a TOML literal, and the default if none is given; `flag` is the command line's name
    without dashes where it is not the field's own; `also` is a variable of other programs that is
    read where ours is not set.
    """
    facts = {"kind": kind, "meaning": meaning, "example": example, "flag": flag, "also": also}
    # A dict cannot be a dataclass's default, although nothing ever changes this one.
    if isinstance(default, Mapping):
        return field(default_factory=lambda: default, metadata={_METADATA: facts})
    return field(default=default, repr=not kind.is_secret, metadata={_METADATA: facts})


def settings_of(config: Any) -> tuple[Setting, ...]:
    """The settings that a program's dataclass declares, in its order."""
    found = []
    for one in fields(config):
        if (facts := one.metadata.get(_METADATA)) is None:
            continue
        default = one.default if one.default_factory is MISSING else one.default_factory()
        kind: ValueKind = facts["kind"]
        found.append(
            Setting(
                one.name,
                default,
                kind,
                facts["meaning"],
                facts["example"] or _literal(kind, default),
                f"--{(facts['flag'] or one.name).replace('_', '-')}" if kind.has_flag else "",
                facts["also"],
            )
        )
    return tuple(found)


def resolve_settings(
    config: type[C],
    program: str,
    *,
    file: Path | None,
    env: Mapping[str, str],
    flags: Mapping[str, Any],
) -> C:
    """Merge the sources into a `config`, which has a `data_dir` and `sources`.

    Variables are `PROGRAM_NAME`; without `file`, `program.toml` in the data directory is read if it
    exists. A flag that is None or empty was not given. Raises SettingError.
    """
    settings = settings_of(config)
    given = _from_environment(settings, program, env) | _from_flags(settings, flags)
    merged: _Values = {s.name: (s.default, "default") for s in settings} | given
    data_dir: Path = merged["data_dir"][0].expanduser().absolute()
    # Where the file lies must be known before it is read, so the file cannot move itself.
    path = file if file is not None else data_dir / f"{program}.toml"
    merged |= _from_file(settings, path, required=file is not None) | given
    values = {
        name: value.derive(data_dir) if isinstance(value, InDataDir) else value
        for name, (value, _) in merged.items()
    }
    sources = {name: source for name, (_, source) in merged.items()}
    make: Callable[..., C] = config
    return make(**(values | {"data_dir": data_dir}), sources=sources)


def new_config_text(config: type, chosen: Mapping[str, str], *, closing: Sequence[str]) -> str:
    """A commented file for a new data directory. `chosen` are TOML literals of what is not default;
    `closing` are lines about what has no example of one line."""
    lines = ["# What stands behind a # is the default or an example."]
    for one in settings_of(config):
        if one.name == "data_dir" or not one.example:
            continue
        lines += ["", f"# {one.meaning}"]
        literal = chosen.get(one.name)
        lines.append(
            f"# {one.name} = {one.example}" if literal is None else f"{one.name} = {literal}"
        )
    return "\n".join([*lines, *closing, ""])


def toml_literal(config: type, name: str, value: Any) -> str:
    """A value as the file would say it."""
    return _literal(next(one.kind for one in settings_of(config) if one.name == name), value)


def setting_literal(config: type, keys: tuple[str, ...], values: Sequence[str]) -> str:
    """What a person typed as the file would say it; `keys` may lead into a table, whose values stay
    as they were typed. Raises SettingError."""
    known = {one.name: one for one in settings_of(config)}
    name, *inner = keys
    if name not in known:
        raise SettingError(f"{name} is no setting{_suggest(name, known)}")
    one = known[name]
    if len(values) > 1 and (inner or not one.kind.is_list):
        raise SettingError(f"{'.'.join(keys)} takes one value, not {len(values)}")
    if inner:
        return json.dumps(values[0], ensure_ascii=False)
    if not one.example or name == "data_dir":
        raise SettingError(f"{name} cannot be set in one line of the file")
    if one.kind.is_list and list(values) == [""]:
        return "[]"
    raw = list(values) if one.kind.is_list else values[0]
    return _literal(one.kind, _read(one, raw, "the command line")) or '""'


def settings_table(config: type) -> str:
    """The settings in Markdown, as docs/operating.md shows them."""
    rows = ["| setting | flag | values | default | meaning |", "|---|---|---|---|---|"]
    for one in settings_of(config):
        cells = (
            f"`{one.name}`",
            f"`{one.flag}`" if one.flag else "–",
            one.kind.values,
            one.default_text or "–",
            one.meaning,
        )
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _literal(kind: ValueKind, value: Any) -> str:
    """Empty for what no single line says."""
    if value in (None, "", (), {}) or isinstance(value, InDataDir):
        return ""
    if kind.is_list:
        return json.dumps([str(item) for item in value], ensure_ascii=False)
    told = kind.tell(value)
    return told if kind.is_number else json.dumps(told, ensure_ascii=False)


_Values = dict[str, tuple[Any, str]]


def _from_environment(settings: Sequence[Setting], program: str, env: Mapping[str, str]) -> _Values:
    prefix = f"{program.upper()}_"
    known = {f"{prefix}{setting.name.upper()}": setting for setting in settings}
    values: _Values = {}
    for setting in settings:
        if text := env.get(setting.also):
            source = f"environment {setting.also}"
            values[setting.name] = (_read(setting, text, source), source)
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
        source = f"flag {known[name].flag}"
        values[name] = (_read(known[name], raw, source), source)
    return values


def _from_file(settings: Sequence[Setting], path: Path, *, required: bool) -> _Values:
    text = _load_text(path, required=required)
    plain = _parse_toml(text, path)
    known = {setting.name: setting for setting in settings}
    values: _Values = {}
    for name, raw in plain.items():
        place = f"{path}{_line_of(text, (name,))}"
        if name not in known:
            raise SettingError(f"{place} sets {name}, which is no setting{_suggest(name, known)}")
        if name == "data_dir":
            raise SettingError(
                f"{place} sets data_dir, which decides where that file lies: use --data-dir"
            )
        if known[name].kind.is_secret:
            _require_private(path, name)
        try:
            value = known[name].kind.read(raw)
        except ValueError as error:
            keys = error.keys if isinstance(error, KeyValueError) else ()
            place = f"file {path}{_line_of(text, (name, *keys))}"
            raise _wrong_value(known[name], raw, place, error) from None
        values[name] = (value, f"file {path}")
    return values


def _require_private(path: Path, name: str) -> None:
    if stat.S_IMODE(path.stat().st_mode) & 0o077:
        raise SettingError(f"{path} holds {name} and can be read by others: run `chmod 600 {path}`")


def _line_of(text: str, keys: tuple[str, ...]) -> str:
    """Where these nested keys are set, such as `, line 7`: the line of the innermost of them that
    is found; empty if none is."""
    found, start = 0, 0
    lines = text.splitlines()
    for key in keys:
        says = re.compile(rf"""^[^#=]*(?<![\w-]){re.escape(key)}(?![\w-])""")
        number = next((n for n in range(start, len(lines)) if says.match(lines[n])), None)
        if number is None:
            break
        found, start = number + 1, number
    return f", line {found}" if found else ""


def _load_text(path: Path, *, required: bool) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        if required:
            raise SettingError(f"there is no configuration file {path}") from None
        return ""
    except OSError as error:
        raise SettingError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > _FILE_BYTES_MAX:
        raise SettingError(f"{path} is too large for a configuration file")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise SettingError(f"{path} is not valid TOML: {error}") from None


def _parse_toml(text: str, path: Path) -> dict[str, Any]:
    try:
        # Prices must not pass through floats, so numbers with a point stay text.
        return tomllib.loads(text, parse_float=str)
    except tomllib.TOMLDecodeError as error:
        raise SettingError(f"{path} is not valid TOML: {error}") from None


def _read(setting: Setting, raw: Any, source: str) -> Any:
    try:
        return setting.kind.read(raw)
    except ValueError as error:
        raise _wrong_value(setting, raw, source, error) from None


def _wrong_value(setting: Setting, raw: Any, place: str, error: ValueError) -> SettingError:
    name = setting.name
    for key in error.keys if isinstance(error, KeyValueError) else ():
        # What is shown is the value of the key that is wrong, not the whole table.
        name, raw = f"{name}.{key}", raw.get(key, "") if isinstance(raw, Mapping) else raw
    shown = ", ".join(map(str, raw)) if isinstance(raw, list) else str(raw)
    said = "" if setting.kind.is_secret else f" = {shown[:100]!r}"
    return SettingError(f"{name}{said} (from {place}): expected {error}")


def _suggest(name: str, known: Mapping[str, Setting]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; do you mean {close[0]}?" if close else f"; there are {', '.join(known)}"
