"""The coordinator's settings: defaults < file < environment < flags, resolved once into one object.

How the sources are merged is in `protocol.programs.settings`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from protocol.ids import Digest, is_digest
from protocol.limits import LIST_ITEMS_MAX
from protocol.money import BASIS_POINTS
from protocol.net.dial_policy import DialPolicy, parse_networks
from protocol.programs.kinds import (
    ADDRESSES,
    NETWORKS,
    OPTIONAL_PATH,
    PATH,
    SWITCH,
    TEXT,
    ValueKind,
    choice,
    count,
    read_items,
)
from protocol.programs.log_format import LEVELS, LogFormat
from protocol.programs.settings import InDataDir, resolve_settings, setting

PROGRAM = "coordinator"

DRAIN_S_MAX = 3_600
# A pool is asked for when half of it is gone: four jobs find a lease while new ones come, and the
# money that waits is that of a few jobs.
LEASES_AHEAD = 8
LEASES_AHEAD_MAX = 64


@dataclass(frozen=True, slots=True)
class HttpAddress:
    """Where the gateway listens; port 0 takes a free one. With a `descriptor`, on that inherited
    socket instead: its owner keeps it open while we restart, and clients wait in its queue."""

    host: str
    port: int
    descriptor: int | None = None

    def __str__(self) -> str:
        if self.descriptor is not None:
            return f"fd:{self.descriptor}"
        return f"{self.host}:{self.port}"


def read_http_address(raw: Any) -> HttpAddress:
    host, separator, port = str(raw).rpartition(":")
    if not separator or not host or not port.isdecimal() or int(port) > 65_535:
        raise ValueError("a host and a port such as 127.0.0.1:8080, or fd:3")
    if host == "fd":
        return HttpAddress("", 0, descriptor=int(port))
    return HttpAddress(host.strip("[]"), int(port))


def read_grpc_address(raw: Any) -> HttpAddress | None:
    if str(raw) in ("", "none"):
        return None
    address = read_http_address(raw)
    if address.descriptor is not None:
        raise ValueError("a host and a port such as 127.0.0.1:8081")
    return address


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


def read_origins(raw: Any) -> tuple[str, ...]:
    origins = tuple(read_items(raw, ","))
    if not all(o == "*" or _ORIGIN.fullmatch(o) for o in origins):
        raise ValueError("origins such as https://chat.example, or * for any")
    return origins


# As browsers send it: no path, not even a slash at the end.
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]{1,255}")

ORIGINS = ValueKind(read_origins, "origins of web pages", is_list=True)
GRPC_ADDRESS = ValueKind(
    read_grpc_address, "HOST:PORT, or none", tell=lambda address: str(address or "none").lower()
)
HTTP_ADDRESS = ValueKind(read_http_address, "HOST:PORT or fd:NUMBER")
LEASE_POOL = count(0, LEASES_AHEAD_MAX, "leases")
CATALOGUE = ValueKind(read_catalogue, "names with manifest digests", has_flag=False)


@dataclass(frozen=True, slots=True)
class CoordinatorConfig:
    """Every setting of a coordinator, each declared here and nowhere else."""

    data_dir: Path = setting(
        Path("~/.coordinator"),
        PATH,
        "Where the coordinator keeps its key, its configuration and its books.",
    )
    listen: tuple[str, ...] = setting(
        ("/ip4/0.0.0.0/tcp/4100",), ADDRESSES, "Where nodes and clients reach this coordinator."
    )
    announce: tuple[str, ...] = setting(
        (),
        ADDRESSES,
        "What to tell others instead, if a router forwards another address to this machine.",
        example='["/ip4/203.0.113.7/tcp/4100"]',
    )
    relay: bool = setting(
        True,
        SWITCH,
        "Whether nodes behind routers may be reached through this machine.",
    )
    dial_private: tuple[str, ...] = setting(
        (),
        NETWORKS,
        "Where offers may lead us besides the public internet: `loopback`, or networks.",
        example='["loopback", "192.168.0.0/16"]',
    )
    http: HttpAddress = setting(
        HttpAddress("127.0.0.1", 8080),
        HTTP_ADDRESS,
        "Where the OpenAI-compatible gateway listens: an address, or fd:3 for a socket that the "
        "service manager holds. Put TLS in front of it before you open it.",
    )
    grpc: HttpAddress | None = setting(
        None,
        GRPC_ADDRESS,
        "Where it speaks the Open Inference Protocol over gRPC, in plain text as `http` does.",
        example='"127.0.0.1:8081"',
    )
    cors_origins: tuple[str, ...] = setting(
        (),
        ORIGINS,
        "Web pages that may call the gateway from a browser; * for any.",
        example='["https://chat.example"]',
    )
    metrics_public: bool = setting(
        False,
        SWITCH,
        "Whether GET /metrics answers other machines than this one.",
    )
    database: str = setting(
        InDataDir(lambda data_dir: f"sqlite:///{data_dir / 'books.sqlite'}", "books.sqlite"),
        TEXT,
        "The books, as a URL.",
        example='"sqlite:////var/lib/coordinator/books.sqlite"',
    )
    files_dir: Path = setting(
        InDataDir(lambda data_dir: data_dir / "files", "files/"),
        PATH,
        "Where files of HTTP users and the answers of their batches lie, sealed.",
        example='"/var/lib/coordinator/files"',
    )
    files_max_gib: int = setting(
        20,
        count(1, 1_000_000, "GiB"),
        "How much the files of all accounts may take.",
    )
    files_per_account_gib: int = setting(
        2,
        count(1, 1_000_000, "GiB"),
        "How much the files of one account may take.",
    )
    files_keep_days: int = setting(
        30,
        count(1, 365, "days"),
        "How long a file is kept whose owner does not say.",
    )
    fee_bps: int = setting(
        500,
        count(0, BASIS_POINTS, "hundredths of a percent"),
        "The operator's share of every charge.",
    )
    catalogue: Mapping[str, frozenset[Digest]] = setting(
        {},
        CATALOGUE,
        "Which manifest digests may answer to a model's name; names not listed are free to all.",
        example='{ "smollm2-135m-instruct" = "…64 hex digits…" }',
    )
    client_asks_per_minute: int = setting(
        6_000,
        count(1, 10_000_000),
        "How often one client may ask for leases, settlements or quotes; each job takes two.",
    )
    lease_pool: int = setting(
        0,
        LEASE_POOL,
        "How many leases its own HTTP API takes ahead of its jobs, for each account, model and "
        "size of jobs that is in demand; 0 takes none.",
    )
    share_store: Path | None = setting(
        None,
        OPTIONAL_PATH,
        "A store of models, as `capanode models pull --model-store` fills it, from which nodes may "
        "load what is public under a free licence; none is served unless you name one.",
        example='"/srv/models"',
    )
    share_mbit_per_s: int = setting(
        50, count(1, 100_000, "Mbit/s"), "How fast all of them together may load."
    )
    drain_s: int = setting(
        20,
        count(0, DRAIN_S_MAX, "seconds"),
        "How long streams may go on after Ctrl-C before they are cut.",
        flag="drain",
    )
    log_level: str = setting("info", choice(LEVELS), "How much to log.")
    log_format: LogFormat = setting(
        LogFormat.CONSOLE, choice(LogFormat), "For people (console) or for programs (json)."
    )
    # Where each value came from.
    sources: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def resolve(
        cls,
        *,
        file: Path | None = None,
        env: Mapping[str, str] | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> "CoordinatorConfig":
        """Merge the sources: see `resolve_settings`. Raises SettingError."""
        return resolve_settings(cls, PROGRAM, file=file, env=env or {}, flags=flags or {})

    @property
    def dial_policy(self) -> DialPolicy:
        return DialPolicy(parse_networks(self.dial_private))

    @property
    def coordinators(self) -> tuple[str, ...]:
        """Commands that buy look for the coordinator that runs here."""
        return ()

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
