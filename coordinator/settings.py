"""Each setting of a coordinator, and the frozen object that they resolve to.

How sources are merged, and what a value may look like, is in `protocol.programs.settings`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.ids import Digest, is_digest
from protocol.limits import LIST_ITEMS_MAX
from protocol.money import BASIS_POINTS
from protocol.programs.log import LEVELS, LogFormat
from protocol.programs.settings import (
    Setting,
    read_addresses,
    read_choice,
    read_count,
    read_path,
    read_text,
    resolve_settings,
)

PROGRAM = "coordinator"


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """Where the gateway listens; port 0 takes a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def read_http_address(raw: Any) -> HttpAddress:
    host, separator, port = str(raw).rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError("a host and a port such as 127.0.0.1:8080")
    return HttpAddress(host.strip("[]"), int(port))


def read_catalogue(raw: Any) -> dict[str, frozenset[Digest]]:
    """TOML: a table from model name to a digest, or to a list of them."""
    expected = "a table from model names to manifest digests"
    if not isinstance(raw, Mapping) or len(raw) > LIST_ITEMS_MAX:
        raise ValueError(expected)
    catalogue = {}
    for name, digests in raw.items():
        listed = [digests] if isinstance(digests, str) else digests
        if not isinstance(listed, list) or not all(is_digest(str(d)) for d in listed):
            raise ValueError(expected)
        catalogue[str(name)] = frozenset(map(Digest, listed))
    return catalogue


SETTINGS: tuple[Setting, ...] = (
    Setting(
        "data_dir",
        Path("~/.coordinator").expanduser(),
        read_path,
        "Where the coordinator keeps its key, its configuration and its books.",
        '"~/.coordinator"',
    ),
    Setting(
        "listen",
        ("/ip4/0.0.0.0/tcp/4100",),
        read_addresses,
        "Where nodes and clients reach this coordinator.",
        '["/ip4/0.0.0.0/tcp/4100"]',
    ),
    Setting(
        "announce",
        (),
        read_addresses,
        "What to tell others instead, if a router forwards another address to this machine.",
        '["/ip4/203.0.113.7/tcp/4100"]',
    ),
    Setting(
        "http",
        HttpAddress("127.0.0.1", 8080),
        read_http_address,
        "Where the OpenAI-compatible gateway listens. Put TLS in front of it before you open it.",
        '"127.0.0.1:8080"',
    ),
    Setting(
        "database",
        "",
        read_text,
        "The books, as a URL. Default: sqlite in the data directory.",
        '"sqlite:////var/lib/coordinator/books.sqlite"',
    ),
    Setting(
        "fee_bps",
        500,
        read_count(0, BASIS_POINTS),
        "The operator's share of every charge, in hundredths of a percent.",
        "500",
    ),
    Setting(
        "catalogue",
        {},
        read_catalogue,
        "Which manifest digests may answer to a model's name; names not listed are free to all.",
        '{ "smollm2-135m-instruct" = "…64 hex digits…" }',
    ),
    Setting(
        "client_asks_per_minute",
        6_000,
        read_count(1, 10_000_000),
        "How often one client may ask for leases, settlements or quotes; each job takes two.",
        "6000",
    ),
    Setting("log_level", "info", read_choice(LEVELS), "How much to log.", '"info"'),
    Setting(
        "log_format",
        LogFormat.CONSOLE,
        lambda raw: LogFormat(read_choice(tuple(LogFormat))(raw)),
        "For people (console) or for programs (json).",
        '"console"',
    ),
)


@dataclass(frozen=True, slots=True)
class Config:
    """See SETTINGS for what each field means."""

    data_dir: Path
    listen: tuple[str, ...]
    announce: tuple[str, ...]
    http: HttpAddress
    database: str
    fee_bps: int
    catalogue: Mapping[str, frozenset[Digest]]
    client_asks_per_minute: int
    log_level: str
    log_format: LogFormat
    sources: Mapping[str, str]

    @classmethod
    def resolve(
        cls,
        *,
        file: Path | None = None,
        env: Mapping[str, str] | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> "Config":
        """Merge defaults, file, environment and flags. Raises SettingError."""
        resolved = resolve_settings(SETTINGS, PROGRAM, file=file, env=env or {}, flags=flags or {})
        values = dict(resolved.values)
        if not values["database"]:
            values["database"] = f"sqlite:///{values['data_dir'] / 'books.sqlite'}"
        return cls(**values, sources=resolved.sources)

    @property
    def key_path(self) -> Path:
        return self.data_dir / "coordinator.key"

    @property
    def client_key_path(self) -> Path:
        """The key with which `coordinator submit` and `chat` buy, unless another is named."""
        return self.data_dir / "client.key"

    @property
    def endpoint_path(self) -> Path:
        """Where a running coordinator says how to reach it, for commands on the same machine."""
        return self.data_dir / "endpoint.json"

    @property
    def lock_path(self) -> Path:
        return self.data_dir / "coordinator.lock"
