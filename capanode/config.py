"""The node's configuration: defaults < file < environment < flags, resolved once into one object.

Nothing else in `capanode` reads the environment or the file. What each setting means is in
`capanode.settings`; every value remembers where it came from, so that an error can say so.
"""

import difflib
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capanode.errors import ConfigError
from capanode.settings import SETTINGS, CoordinatorAddress, ModelSettings, Setting
from protocol.ids import PeerId
from protocol.log import LogFormat
from protocol.messages import DataCollection

CONFIG_NAME = "capanode.toml"
ENVIRONMENT_PREFIX = "CAPANODE_"

# A hand-written file has a few kilobytes; more is not a configuration.
_FILE_BYTES_MAX = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Config:
    """See `capanode.settings.SETTINGS` for what each field means."""

    data_dir: Path
    listen: tuple[str, ...]
    announce: tuple[str, ...]
    coordinators: tuple[CoordinatorAddress, ...]
    region: str
    models: tuple[ModelSettings, ...]
    model_store: Path
    data_collection: DataCollection
    queue_max: int
    per_client_max: int
    price_cpu_core_hour: int
    price_gpu_gib_hour: int
    drain_s: int
    log_level: str
    log_format: LogFormat
    status_socket: Path
    sources: Mapping[str, str]

    @classmethod
    def resolve(
        cls,
        *,
        file: Path | None = None,
        env: Mapping[str, str] | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> "Config":
        """Merge the sources. Without `file`, the one in the data directory is read if it exists.

        A flag that is None or empty was not given. Raises ConfigError.
        """
        given = _from_environment(env or {}) | _from_flags(flags or {})
        values = {s.name: (s.default, "default") for s in SETTINGS} | given
        # Where the file lies must be known before it is read, so it cannot move itself.
        data_dir = Path(values["data_dir"][0]).expanduser().absolute()
        values |= _from_file(file, data_dir) | given
        if "data_dir" not in given:
            data_dir = Path(values["data_dir"][0]).expanduser().absolute()
        sources = {name: source for name, (_, source) in values.items()}
        plain = {name: value for name, (value, _) in values.items()} | {"data_dir": data_dir}
        plain["model_store"] = plain["model_store"] or data_dir / "models"
        plain["status_socket"] = plain["status_socket"] or data_dir / "status.sock"
        return cls(**plain, sources=sources)

    @property
    def key_path(self) -> Path:
        return self.data_dir / "node.key"

    @property
    def outbox_path(self) -> Path:
        return self.data_dir / "outbox.sqlite"

    @property
    def benchmarks_path(self) -> Path:
        return self.data_dir / "benchmarks.json"

    @property
    def lock_path(self) -> Path:
        return self.data_dir / "node.lock"

    @property
    def trusted_coordinators(self) -> frozenset[PeerId]:
        """Whose leases this node accepts."""
        return frozenset(coordinator.peer for coordinator in self.coordinators)


def new_config_text(chosen: Mapping[str, str]) -> str:
    """A commented file for `capanode init`; `chosen` are TOML literals of what is not default."""
    lines = ["# Settings of this node. What stands behind a # is the default or an example."]
    for setting in SETTINGS:
        if setting.name in ("data_dir", "models"):
            continue
        lines += ["", f"# {setting.meaning}"]
        literal = chosen.get(setting.name)
        lines.append(
            f"# {setting.name} = {setting.example}"
            if literal is None
            else f"{setting.name} = {literal}"
        )
    return "\n".join([*lines, *_MODELS_COMMENT, ""])


_MODELS_COMMENT = (
    "",
    "# What to serve; all that the store holds if none is listed (`capanode models list`).",
    "# Prices are in credits: per million tokens in and out, per image, per request.",
    "# Slots and threads that you leave out fit the machine; prices are proposed from its speed.",
    '# [models."smollm2-135m-instruct"]',
    "# slots = 16",
    "# threads = 2",
    '# input_per_mtok = "0.02"',
    '# output_per_mtok = "0.06"',
)

_Values = dict[str, tuple[Any, str]]


def _from_environment(env: Mapping[str, str]) -> _Values:
    known = {setting.variable: setting for setting in SETTINGS}
    values: _Values = {}
    for variable, text in env.items():
        if not variable.startswith(ENVIRONMENT_PREFIX) or not text:
            continue
        setting = known.get(variable)
        if setting is None:
            raise ConfigError(
                f"the environment sets {variable}, which is no setting{_suggest(variable, known)}"
            )
        source = f"environment {variable}"
        values[setting.name] = (_read(setting, text, source), source)
    return values


def _from_flags(flags: Mapping[str, Any]) -> _Values:
    known = {setting.name: setting for setting in SETTINGS}
    values: _Values = {}
    for name, raw in flags.items():
        if raw is None or raw in ([], ()):
            continue
        setting = known[name]
        source = f"flag {setting.flag}"
        values[name] = (_read(setting, raw, source), source)
    return values


def _from_file(explicit: Path | None, data_dir: Path) -> _Values:
    path = explicit if explicit is not None else data_dir / CONFIG_NAME
    plain = _load_toml(path, required=explicit is not None)
    known = {setting.name: setting for setting in SETTINGS}
    if explicit is None and "data_dir" in plain:
        raise ConfigError(
            f"{path} sets data_dir, but it lies in a data directory itself: use --data-dir or "
            "CAPANODE_DATA_DIR"
        )
    values: _Values = {}
    for name, raw in plain.items():
        setting = known.get(name)
        if setting is None:
            raise ConfigError(f"{path} sets {name}, which is no setting{_suggest(name, known)}")
        source = f"file {path}"
        values[name] = (_read(setting, raw, source), source)
    return values


def _load_toml(path: Path, *, required: bool) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        if required:
            raise ConfigError(f"there is no configuration file {path}") from None
        return {}
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    if len(data) > _FILE_BYTES_MAX:
        raise ConfigError(f"{path} is too large for a configuration file")
    try:
        # Prices must not pass through floats, so numbers with a point stay text.
        return tomllib.loads(data.decode(), parse_float=str)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _read(setting: Setting, raw: Any, source: str) -> Any:
    try:
        return setting.read(raw)
    except ValueError as error:
        raise ConfigError(
            f"{setting.name} = {str(raw)[:100]!r} (from {source}): expected {error}"
        ) from None


def _suggest(name: str, known: Mapping[str, Setting]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"; do you mean {close[0]}?" if close else "; see `capanode config show` for all"
