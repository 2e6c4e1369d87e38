"""The node's configuration: defaults < file < environment < flags, resolved once into one object.

Nothing else in `capanode` knows the environment or the file. What each setting means is in
`capanode.settings`, how the sources are merged in `protocol.programs.settings`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capanode.settings import SETTINGS, CoordinatorAddress, ModelSettings
from protocol.ids import PeerId
from protocol.messages import DataCollection
from protocol.programs.log import LogFormat
from protocol.programs.settings import resolve_settings

PROGRAM = "capanode"
CONFIG_NAME = f"{PROGRAM}.toml"


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
    worker_nice: int
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

        A flag that is None or empty was not given. Raises SettingError.
        """
        resolved = resolve_settings(SETTINGS, PROGRAM, file=file, env=env or {}, flags=flags or {})
        plain = dict(resolved.values)
        data_dir = plain["data_dir"] = plain["data_dir"].expanduser().absolute()
        plain["model_store"] = plain["model_store"] or data_dir / "models"
        plain["status_socket"] = plain["status_socket"] or data_dir / "status.sock"
        return cls(**plain, sources=resolved.sources)

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
