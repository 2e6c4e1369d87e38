"""`capanode models`: what this node can serve."""

import json
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from capanode.cli.options import ConfigFile, DataDir, Json, ModelStoreDir, load_config
from protocol.programs.output import bytes_text, print_json, print_table, say, time_text

if TYPE_CHECKING:
    from collections.abc import Iterator

    from capanode.config import NodeConfig
    from capanode.models.library import ModelSummary
    from capanode.models.peer_market import PeerOptions
    from capanode.models.progress import ProgressCallback
    from capanode.models.recommend import Recommendation

_LOG_LEVEL = "warning"

AllowCode = Annotated[
    bool,
    typer.Option("--allow-code-models", help="Take a program, whose loading runs code."),
]

app = typer.Typer(help="Get, list and remove models.", no_args_is_help=True)


@app.command("list")
def list_command(
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    model_store: ModelStoreDir = None,
    as_json: Json = False,
) -> None:
    """What is here, and what the catalog could bring."""
    from capanode.models.catalog import load_catalog
    from capanode.models.library import list_models
    from capanode.models.store import ModelStore

    config = load_config(data_dir, config_file, model_store=model_store)
    found = list_models(
        ModelStore(config.model_store), load_catalog(), promised=config.promised_models
    )
    if as_json:
        print_json([_plain(model) for model in found])
        return
    print_table(
        ("model", "state", "use", "last used", "task", "size", "licence", "digest"),
        [
            (
                model.name,
                model.state,
                _use(model),
                time_text(int(model.last_used_s * 1_000) if model.last_used_s else None),
                model.manifest.task.value if model.manifest else "-",
                bytes_text(model.bytes),
                model.manifest.licence if model.manifest else "-",
                model.digest[:12],
            )
            for model in found
        ],
    )


@app.command("pull")
def pull_command(
    names: Annotated[
        list[str],
        typer.Argument(
            help="Names of `models list`, hf:OWNER/REPO@REVISION, peer:DIGEST, file:PATH."
        ),
    ],
    name: Annotated[
        str | None, typer.Option(help="What to call it here.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    model_store: ModelStoreDir = None,
    allow_code_models: AllowCode = False,
    from_peers: Annotated[
        list[str] | None,
        typer.Option("--from", help="A peer to ask: /ip4/…/p2p/ID. May be repeated."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Get models, check them byte for byte, and convert them if needed."""
    from capanode.models.catalog import load_catalog
    from capanode.models.hub_connection import HubOptions
    from capanode.models.library import PullOptions, pull
    from capanode.models.room import Quota
    from capanode.models.store import ModelStore
    from protocol.programs.log import configure_logging

    if name is not None and len(names) != 1:
        raise typer.BadParameter("--name goes with one model")
    flags = {"allow_code_models": True} if allow_code_models else {}
    config = load_config(data_dir, config_file, model_store=model_store, **flags)
    configure_logging(level=_LOG_LEVEL, log_format=config.log_format)
    options = PullOptions(
        hub=HubOptions(endpoint=config.hub_url, token=config.hub_token or None),
        quota=Quota(config.store_max_gib * 1024**3, config.promised_models or None),
        allow_code=config.allow_code_models,
        peers=_peers(config, from_peers or []),
    )
    store, catalog = ModelStore(config.model_store), load_catalog()
    for wanted in names:
        with _shown_progress(as_json) as progress, _kept_when_interrupted(wanted):
            model = pull(store, catalog, wanted, progress=progress, name=name, options=options)
        if as_json:
            print_json({"name": name or model.manifest.name, "digest": model.digest})
        else:
            typer.echo(f"{name or model.manifest.name}  {model.digest}")


def _peers(config: "NodeConfig", named: list[str]) -> "PeerOptions | None":
    from capanode.models.peer_market import PeerOptions, peer_at
    from protocol.errors import RemoteProtocolError

    try:
        for address in named:
            peer_at(address)
    except RemoteProtocolError:
        raise typer.BadParameter(
            "--from takes an address that ends in /p2p/ and a peer id"
        ) from None
    coordinators = tuple(coordinator.address for coordinator in config.coordinators)
    if not named and not coordinators:
        return None
    return PeerOptions(tuple(named), coordinators, config.dial_policy.with_trusted(named))


@contextmanager
def _shown_progress(as_json: bool) -> "Iterator[ProgressCallback]":
    from rich.console import Console

    from capanode.models.progress_bar import ConsoleProgress, JsonProgress

    if as_json:
        yield JsonProgress(lambda step: typer.echo(json.dumps({"progress": step}), err=True))
    else:
        with ConsoleProgress(Console(stderr=True)) as progress:
            yield progress


@contextmanager
def _kept_when_interrupted(wanted: str) -> "Iterator[None]":
    try:
        yield
    except KeyboardInterrupt:
        say(f"what has arrived is kept: `capanode models pull {wanted}` goes on with it")
        raise


@app.command("add")
def add_command(
    path: Annotated[
        Path,
        typer.Argument(help="A folder with config.json and model.safetensors, or a .gguf file."),
    ],
    name: Annotated[
        str | None, typer.Option(help="What to call it; else as the folder.", show_default=False)
    ] = None,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    model_store: ModelStoreDir = None,
    allow_code_models: AllowCode = False,
    as_json: Json = False,
) -> None:
    """Take over a model from this machine, for example one that you trained: `pull file:PATH`."""
    pull_command(
        [f"file:{path}"],
        name,
        data_dir,
        config_file,
        model_store,
        allow_code_models,
        as_json=as_json,
    )


@app.command("recommend")
def recommend_command(
    show_all: Annotated[bool, typer.Option("--all", help="Also what does not run here.")] = False,
    offline: Annotated[bool, typer.Option("--offline", help="Ask no market for prices.")] = False,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    model_store: ModelStoreDir = None,
    as_json: Json = False,
) -> None:
    """Which models fit this machine, and what a busy hour of each would earn."""
    from capanode.models.catalog import load_catalog
    from capanode.models.recommend import best, recommend
    from capanode.models.recommend_here import look_around
    from protocol.programs.log import configure_logging

    config = load_config(data_dir, config_file, model_store=model_store)
    # To stderr, and no more than what is wrong: stdout is for the answer.
    configure_logging(level=_LOG_LEVEL, log_format=config.log_format)
    around = look_around(config, is_online=not offline)
    found = recommend(
        load_catalog(),
        around.room,
        here=around.here,
        measured=around.measured,
        prices=around.prices,
    )
    if as_json:
        print_json([asdict(one) for one in found])
        return
    say(f"for {around.device}, with {bytes_text(around.room.disk_free_bytes)} of disk free")
    print_table(
        ("model", "use", "size", "memory", "context", "credits/hour", "licence", "state"),
        [
            (
                one.name,
                one.use,
                bytes_text(one.bytes),
                bytes_text(one.memory_bytes),
                one.context_tokens,
                _hourly(one),
                f"{one.licence}{', gated' if one.is_gated else ''}",
                one.problem or ("here" if one.is_here else "fits"),
            )
            for one in found
            if show_all or not one.problem
        ],
    )
    say("~ is no measurement: a speed estimated from the size of the weights, at the price in your")
    say("markets (m), or else at public providers;")
    say("models of a hub pin no revision, and were never pulled where this list was made")
    if (next_one := best(found)) is not None:
        say(f"next: `capanode models pull {next_one.name}`")


@app.command("rm")
def remove_command(
    names: Annotated[list[str], typer.Argument(help="Names or digests of models here.")],
    force: Annotated[bool, typer.Option("--force", help="Also what is served or listed.")] = False,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    model_store: ModelStoreDir = None,
) -> None:
    """Remove models; one that a node serves, or that the configuration lists, only with --force."""
    from capanode.models.library import remove
    from capanode.models.store import ModelStore

    config = load_config(data_dir, config_file, model_store=model_store)
    store = ModelStore(config.model_store)
    for name in names:
        freed = remove(store, name, promised=config.promised_models, force=force)
        say(f"removed {name}, {bytes_text(freed)} freed")


@app.command("gc")
@app.command("prune", hidden=True)
def collect_command(
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    model_store: ModelStoreDir = None,
    as_json: Json = False,
) -> None:
    """Delete what no model needs: half-finished downloads, and what crashes left behind."""
    from capanode.models.store import ModelStore

    config = load_config(data_dir, config_file, model_store=model_store)
    freed = ModelStore(config.model_store).collect_garbage()
    if as_json:
        print_json({"freed_bytes": freed})
    else:
        say(f"{bytes_text(freed)} freed")


def _use(model: "ModelSummary") -> str:
    return "served" if model.is_served else "promised" if model.is_promised else "-"


def _hourly(one: "Recommendation") -> str:
    if not one.nano_per_hour:
        return "-"
    mark = {"measured": "", "market_price": "~m ", "estimate": "~"}[one.basis.value]
    return f"{mark}{one.nano_per_hour / 1e9:.4f}"


def _plain(model: "ModelSummary") -> dict[str, object]:
    return {
        "name": model.name,
        "digest": model.digest,
        "state": model.state,
        "bytes": model.bytes,
        "served": model.is_served,
        "promised": model.is_promised,
        "last_used_ms": int(model.last_used_s * 1_000) if model.last_used_s else None,
        "task": model.manifest.task.value if model.manifest else None,
        "licence": model.manifest.licence if model.manifest else None,
        "path": str(model.path) if model.path else None,
    }
