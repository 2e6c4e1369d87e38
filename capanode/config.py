"""The node's configuration: defaults < file < environment < flags, resolved once into one object.

Nothing else in `capanode` knows the environment or the file. How the sources are merged is in
`protocol.programs.settings`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from capanode.hourly_rates import DEFAULT_HOURLY_RATES
from capanode.sandbox.limits import NICE_DEFAULT, NICE_MAX
from capanode.schedule import WINDOWS, ZONE, Window
from capanode.settings import (
    COORDINATORS,
    MODELS,
    CoordinatorAddress,
    IfGpuFails,
    ModelSettings,
)
from capanode.utilization_price import PricePolicy
from protocol.messages import DataCollection
from protocol.net.dial_policy import DialPolicy, parse_networks
from protocol.offers import BATCH_PERCENT_DEFAULT, SLOTS_MAX
from protocol.pricing import PERCENT
from protocol.programs.kinds import (
    ADDRESSES,
    CREDITS,
    NETWORKS,
    OPTIONAL_CREDITS,
    PATH,
    SECRET,
    SWITCH,
    TEXT,
    URL,
    choice,
    count,
)
from protocol.programs.log_format import LEVELS, LogFormat
from protocol.programs.settings import InDataDir, new_config_text, resolve_settings, setting

PROGRAM = "capanode"
CONFIG_NAME = f"{PROGRAM}.toml"

DRAIN_S_MAX = 3_600


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """Every setting of a node, each declared here and nowhere else."""

    data_dir: Path = setting(
        Path("~/.capanode"),
        PATH,
        "Where the node keeps its key, its configuration, its models and its receipts.",
    )
    listen: tuple[str, ...] = setting(
        ("/ip4/0.0.0.0/tcp/4101",), ADDRESSES, "Where clients reach this node."
    )
    announce: tuple[str, ...] = setting(
        (),
        ADDRESSES,
        "What to tell others instead, if a router forwards another address to this node.",
        example='["/ip4/203.0.113.7/tcp/4101"]',
    )
    map_port: bool = setting(
        True,
        SWITCH,
        "Whether to ask the router to forward a port (UPnP, NAT-PMP) where nothing can dial in.",
    )
    relay: bool = setting(
        False,
        SWITCH,
        "Whether others behind routers may be reached through this node.",
    )
    dial_private: tuple[str, ...] = setting(
        (),
        NETWORKS,
        "Where offers may lead us besides the public internet: `loopback`, or networks.",
        example='["loopback", "192.168.0.0/16"]',
    )
    coordinators: tuple[CoordinatorAddress, ...] = setting(
        (),
        COORDINATORS,
        "The markets to join. Leases of these coordinators, and of no others, are accepted.",
        example='["/ip4/198.51.100.4/tcp/4100/p2p/12D3KooW…"]',
        flag="coordinator",
    )
    region: str = setting(
        "", TEXT, "Where this machine stands; clients may ask for it.", example='"eu"'
    )
    models: tuple[ModelSettings, ...] = setting(
        (),
        MODELS,
        "What to serve; all that the store holds if none is listed. Prices are in credits.",
        flag="model",
    )
    load_on_demand: bool = setting(
        True,
        SWITCH,
        "Whether models for which there is no memory beside the others are offered all the same: "
        "the first job loads one, in place of that whose last job is longest ago.",
    )
    memory_max_gib: int = setting(
        0,
        count(0, 1_000_000, "GiB"),
        "How much of the machine's memory models on the processor may take together, by an "
        "estimate from their files; 0 is what the machine has.",
    )
    model_store: Path = setting(
        InDataDir(lambda data_dir: data_dir / "models", "models/"),
        PATH,
        "Where models lie; nodes may share a store.",
        example='"/srv/models"',
    )
    store_max_gib: int = setting(
        0,
        count(0, 1_000_000, "GiB"),
        "How much models may take: a pull removes those unused for longest, but none that a node "
        "serves or that `models` lists; 0 is no limit.",
    )
    share_models: bool = setting(
        False,
        SWITCH,
        "Whether other nodes may load from here what is public under a free licence.",
    )
    share_mbit_per_s: int = setting(
        50, count(1, 100_000, "Mbit/s"), "How fast all of them together may load."
    )
    hub_url: str = setting(
        "https://huggingface.co",
        URL,
        "The hub that `hf:` models come from: a mirror of your own has another address.",
    )
    hub_token: str = setting(
        "",
        SECRET,
        "Your token for gated and private models of that hub; `HF_TOKEN` is read, too.",
        example='"hf_…"',
        also="HF_TOKEN",
    )
    allow_code_models: bool = setting(
        False,
        SWITCH,
        "Whether models may be programs of torch.export: loading one runs code of its maker.",
    )
    data_collection: DataCollection = setting(
        DataCollection.DENY,
        choice(DataCollection),
        "Whether this node may keep prompts; `deny` promises clients that it does not.",
    )
    queue_max: int = setting(
        16,
        count(0, SLOTS_MAX, "jobs"),
        "Jobs per model that may wait for a slot; the next one is sent to another node.",
    )
    per_client_max: int = setting(
        64,
        count(1, SLOTS_MAX, "jobs"),
        "Jobs that one client may have here at once, running or waiting.",
    )
    worker_nice: int = setting(
        NICE_DEFAULT,
        count(0, NICE_MAX),
        "How far models stand back (as nice(1)) when the processor is busy with other things.",
    )
    if_gpu_fails: IfGpuFails = setting(
        IfGpuFails.STOP,
        choice(IfGpuFails),
        "What to do at the start if a GPU is here that cannot be used, or has no room for a model: "
        "stop (leave that model out), or serve from the processor (cpu), also a model whose GPU is "
        "lost later, until it works again.",
    )
    price_cpu_core_hour: int = setting(
        DEFAULT_HOURLY_RATES.cpu_core_hour_nano,
        CREDITS,
        "Target revenue of one busy CPU core per hour; sets the prices that you leave open.",
    )
    price_gpu_hour: int | None = setting(
        None,
        OPTIONAL_CREDITS,
        "Target revenue of one busy GPU per hour, instead of that in the table of cards.",
        example='"0.24"',
    )
    price_gpu_gib_hour: int | None = setting(
        None,
        OPTIONAL_CREDITS,
        "The same by GiB of its memory, if the one per GPU is not set.",
        example='"0.01"',
    )
    price_policy: PricePolicy = setting(
        PricePolicy.FIXED,
        choice(PricePolicy),
        "Whether the prices that you leave open stay, or follow how full the node is.",
    )
    price_floor_percent: int = setting(
        60,
        count(1, PERCENT, "percent"),
        "How far `utilization` may go down, in percent of the proposed price.",
    )
    price_ceiling_percent: int = setting(
        200,
        count(PERCENT, 1_000, "percent"),
        "How far `utilization` may go up, in percent of the proposed price.",
    )
    schedule: tuple[Window, ...] = setting(
        (),
        WINDOWS,
        "When this machine takes jobs; always if nothing is listed. Jobs that run are finished.",
        example='["mon-fri 22:00-08:00", "sat,sun"]',
    )
    time_zone: str = setting(
        "", ZONE, "Whose time `schedule` means; this machine's if empty.", example='"Europe/Berlin"'
    )
    yield_to_owner: bool = setting(
        False,
        SWITCH,
        "Whether to take no more jobs while other programs use the GPU or half of the processor.",
    )
    gpu_celsius_max: int = setting(
        90,
        count(0, 120, "°C"),
        "A GPU that is hotter gets no new jobs until it is ten degrees cooler; 0 for no limit.",
    )
    batch_percent: int = setting(
        BATCH_PERCENT_DEFAULT,
        count(1, PERCENT, "percent"),
        "What a batch job pays of your prices: it takes only seats that are idle, and gives way.",
    )
    drain_s: int = setting(
        30,
        count(0, DRAIN_S_MAX, "seconds"),
        "How long jobs may go on after Ctrl-C before they are cut.",
        flag="drain",
    )
    log_level: str = setting("info", choice(LEVELS), "How much to log.")
    log_format: LogFormat = setting(
        LogFormat.CONSOLE, choice(LogFormat), "For people (console) or for programs (json)."
    )
    update_check: bool = setting(
        True,
        SWITCH,
        "Whether to ask pypi.org once a day for a newer version, which `capanode status` tells.",
    )
    status_socket: Path = setting(
        InDataDir(lambda data_dir: data_dir / "status.sock", "status.sock"),
        PATH,
        "Where `capanode status` asks.",
        example='"/run/capanode.sock"',
    )
    # Where each value came from.
    sources: Mapping[str, str] = field(default_factory=dict)
    # The file that was named on the command line; None for the one in the data directory.
    named_file: Path | None = None

    @classmethod
    def resolve(
        cls,
        *,
        file: Path | None = None,
        env: Mapping[str, str] | None = None,
        flags: Mapping[str, Any] | None = None,
    ) -> "NodeConfig":
        """Merge the sources: see `resolve_settings`. Raises SettingError."""
        found = resolve_settings(cls, PROGRAM, file=file, env=env or {}, flags=flags or {})
        return replace(found, named_file=file)

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
    def load_times_path(self) -> Path:
        return self.data_dir / "load_times.json"

    @property
    def pause_path(self) -> Path:
        return self.data_dir / "paused"

    @property
    def file(self) -> Path:
        """The file of these settings, whether there is one or not."""
        return self.named_file or self.data_dir / CONFIG_NAME

    @property
    def promised_models(self) -> frozenset[str]:
        """The names of the models that this node shall serve; empty if it serves all there are."""
        return frozenset(model.name for model in self.models)

    @property
    def lock_path(self) -> Path:
        return self.data_dir / "node.lock"

    @property
    def dial_policy(self) -> DialPolicy:
        """Our coordinators are dialled wherever they are; other addresses come from strangers."""
        listed = (coordinator.address for coordinator in self.coordinators)
        return DialPolicy(parse_networks(self.dial_private)).with_trusted(listed)


def reread_config(known: NodeConfig) -> NodeConfig:
    """The settings with what their file says now; flags and the environment stay as they were.

    Raises SettingError."""
    flags = {"data_dir": known.data_dir}
    found = NodeConfig.resolve(file=known.named_file, flags=flags)
    kept = {
        name: getattr(known, name)
        for name, source in known.sources.items()
        if source.startswith(("flag", "environment"))
    }
    sources = {**found.sources, **{name: known.sources[name] for name in kept}}
    return replace(found, **kept, sources=sources)


def new_node_config_text(chosen: Mapping[str, str]) -> str:
    """A commented file for `capanode init`; `chosen` are TOML literals of what is not default."""
    return new_config_text(NodeConfig, chosen, closing=_MODELS_COMMENT)


_MODELS_COMMENT = (
    "",
    "# What to serve; all that the store holds if none is listed (`capanode models list`).",
    "# Prices are in credits: per million tokens in and out, per image, per request, per thousand",
    "# tensor elements.",
    "# Slots and threads that you leave out fit the machine; prices are proposed from its speed.",
    '# [models."smollm2-135m-instruct"]',
    "# slots = 16",
    "# threads = 2",
    '# input_per_mtok = "0.02"',
    '# output_per_mtok = "0.06"',
    "# keep_loaded = true  # gives its memory to no other model",
)
