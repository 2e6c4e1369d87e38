"""The settings of programs that buy: `capacloud`, and `coordinator gateway` beside its users.

They need no books, so they have a data directory of their own.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from coordinator.settings import (
    DRAIN_S_MAX,
    GRPC_ADDRESS,
    HTTP_ADDRESS,
    LEASE_POOL,
    LEASES_AHEAD,
    ORIGINS,
    HttpAddress,
)
from protocol.net.dial_policy import DialPolicy, parse_networks
from protocol.programs.kinds import ADDRESSES, NETWORKS, PATH, SWITCH, choice, count
from protocol.programs.log_format import LEVELS, LogFormat
from protocol.programs.settings import InDataDir, setting

PROGRAM = "capacloud_client"


class BuyingConfig(Protocol):
    """What a command that buys needs to know, whichever program it belongs to."""

    @property
    def data_dir(self) -> Path: ...
    @property
    def coordinators(self) -> tuple[str, ...]: ...
    @property
    def dial_private(self) -> tuple[str, ...]: ...
    @property
    def dial_policy(self) -> DialPolicy: ...
    @property
    def client_key_path(self) -> Path: ...
    @property
    def endpoint_path(self) -> Path: ...
    @property
    def log_level(self) -> str: ...
    @property
    def log_format(self) -> LogFormat: ...
    @property
    def sources(self) -> Mapping[str, str]: ...


@dataclass(frozen=True, slots=True)
class BuyerConfig:
    """Every setting of a buyer, each declared here and nowhere else."""

    data_dir: Path = setting(
        Path("~/.capacloud"),
        PATH,
        "Where a buyer keeps its key, its configuration and its gateway's API keys.",
    )
    coordinators: tuple[str, ...] = setting(
        (),
        ADDRESSES,
        "The markets to buy in: multiaddresses with /p2p/. A gateway asks the nearest that answers "
        "first, a command the first of them, or a coordinator on this machine if there are none.",
        example='["/ip4/203.0.113.7/tcp/4100/p2p/12D3KooW…"]',
        flag="coordinator",
    )
    identity: Path = setting(
        InDataDir(lambda data_dir: data_dir / "client.key", "client.key"),
        PATH,
        "The key to buy with, made on first use: its account pays.",
        example='"/etc/capacloud/client.key"',
    )
    files_dir: Path = setting(
        InDataDir(lambda data_dir: data_dir / "files", "files/"),
        PATH,
        "Where a gateway's files, and the answers of its batches, lie, sealed.",
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
        "Where the gateway listens: an address, or fd:3 for a socket that the service manager "
        "holds. Another address than this machine's own needs API keys, and TLS in front of it.",
    )
    no_keys: bool = setting(
        False,
        replace(SWITCH, has_flag=False),  # `coordinator gateway --no-keys` takes no value.
        "Whether the gateway serves every program of this machine without an API key.",
    )
    lease_pool: int = setting(
        LEASES_AHEAD,
        LEASE_POOL,
        "How many leases the gateway takes ahead of its jobs, for each model and size of jobs that "
        "is in demand; 0 takes none.",
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
        False, SWITCH, "Whether GET /metrics answers other machines than this one."
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

    @property
    def dial_policy(self) -> DialPolicy:
        return DialPolicy(parse_networks(self.dial_private)).with_trusted(self.coordinators)

    @property
    def client_key_path(self) -> Path:
        return self.identity

    @property
    def gateway_keys_path(self) -> Path:
        return self.data_dir / "gateway_keys.sqlite"

    @property
    def lock_path(self) -> Path:
        return self.data_dir / "gateway.lock"

    @property
    def endpoint_path(self) -> Path:
        """Where a coordinator that the same user runs on this machine says how to reach it."""
        return Path("~/.coordinator/endpoint.json").expanduser()
