"""`coordinator gateway`: the HTTP API beside its users, with their own key, over coordinators
elsewhere; and the API keys of such a gateway."""

import os
from dataclasses import asdict, replace
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.buyer_config import PROGRAM, BuyerConfig
from coordinator.cli.options import CommandError, ConfigFile, DataDir, Json, read_typed
from protocol.limits import NAME_CHARS_MAX
from protocol.money import format_credits, parse_credits
from protocol.programs import setting_options
from protocol.programs.commands import UsageError
from protocol.programs.log_format import LogFormat
from protocol.programs.output import print_json, print_table, say, time_text

if TYPE_CHECKING:
    from coordinator.edge.keys import GatewayKeys

app = typer.Typer(
    help="The HTTP API beside its users, over coordinators elsewhere: payloads go from here to "
    "nodes only."
)
keys_app = typer.Typer(help="API keys of this gateway: make, list and revoke them.")
app.add_typer(keys_app, name="keys", no_args_is_help=True)


def gateway(
    config: BuyerConfig,
    context: typer.Context,
    no_keys: Annotated[
        bool,
        typer.Option("--no-keys", help="Serve every program of this machine without an API key."),
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve the OpenAI-compatible API until Ctrl-C, buying with the key of --identity."""
    if context.invoked_subcommand is not None:
        return
    import trio

    from coordinator.edge.serve import EdgeEndpoint, serve_edge
    from protocol.programs.log import configure_logging

    config = replace(config, no_keys=config.no_keys or no_keys)
    if not config.coordinators:
        raise UsageError(
            "name a market with --coordinator: the multiaddress that its operator tells, with "
            "/p2p/ at its end; or set `coordinators` in "
            f"{config.data_dir / f'{PROGRAM}.toml'}"
        )
    configure_logging(level=config.log_level, log_format=config.log_format)

    def on_ready(endpoint: EdgeEndpoint) -> None:
        if as_json:
            print_json(asdict(endpoint))
            return
        typer.echo(f"gateway of {endpoint.peer_id}")
        for address in endpoint.coordinators:
            typer.echo(f"  buys at   {address}")
        typer.echo(f"  HTTP API  {endpoint.http}/v1")
        if not endpoint.needs_key:
            typer.echo(
                "  no API keys: every program of this machine may spend this account's money"
            )
        if config.log_format is LogFormat.CONSOLE:
            say("Ctrl-C stops it.")

    trio.run(partial(serve_edge, config, on_ready))


app.callback(invoke_without_command=True)(
    setting_options.takes_settings(BuyerConfig, PROGRAM)(gateway)
)


@keys_app.command("create")
def create_key(
    name: Annotated[str, typer.Argument(help="Who or what the key is for.")],
    budget: Annotated[
        str | None, typer.Option(help="At most this many credits, ever.", show_default="no limit")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, show_default="no limit")
    ] = None,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Make a key. It is shown once, here, and never again."""
    from protocol.net.clock import SystemClock

    budget_nano = read_typed(parse_credits, budget) if budget is not None else None
    keys = _open_keys(data_dir, config_file)
    secret, key = keys.create(
        read_typed(_read_name, name),
        now_ms=SystemClock().now_ms(),
        entropy=os.urandom,
        budget_nano=budget_nano,
        requests_per_minute=requests_per_minute,
    )
    if as_json:
        print_json({"key": secret, **asdict(key)})
        return
    say(f"Key {key.id} of this gateway. Copy it now; it is not stored:")
    typer.echo(secret)


@keys_app.command("list")
def list_keys(
    data_dir: DataDir = None, config_file: ConfigFile = None, as_json: Json = False
) -> None:
    """Every key with its use; the keys themselves are not stored."""
    found = _open_keys(data_dir, config_file).all_keys()
    if as_json:
        print_json([asdict(key) for key in found])
        return
    print_table(
        ("id", "begins", "name", "created", "spent", "budget", "state"),
        [
            (
                key.id,
                f"{key.prefix}…",
                key.name,
                time_text(key.created_at_ms),
                format_credits(key.spent_nano),
                "-" if key.budget_nano is None else format_credits(key.budget_nano),
                "active" if key.revoked_at_ms is None else "revoked",
            )
            for key in found
        ],
    )


@keys_app.command("revoke")
def revoke_key(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `gateway keys list` shows it.")],
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Let no request in with this key any more."""
    from protocol.net.clock import SystemClock

    if not _open_keys(data_dir, config_file).revoke(key_id, now_ms=SystemClock().now_ms()):
        raise CommandError(f"there is no key {key_id!r} that could be revoked")
    if as_json:
        print_json({"revoked": key_id})
    else:
        say(f"Key {key_id} is revoked.")


def _open_keys(data_dir: DataDir, config_file: ConfigFile) -> "GatewayKeys":
    from coordinator.edge.keys import GatewayKeys

    config = setting_options.load_config(BuyerConfig, PROGRAM, config_file, data_dir=data_dir)
    return GatewayKeys(config.gateway_keys_path)


def _read_name(text: str) -> str:
    name = text.strip()
    if not 0 < len(name) <= NAME_CHARS_MAX or not name.isprintable():
        raise ValueError(f"a key's name has 1 to {NAME_CHARS_MAX} printable characters")
    return name
