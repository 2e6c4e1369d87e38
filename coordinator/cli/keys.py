"""`coordinator keys`: API keys for people and programs that speak HTTP."""

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from coordinator.cli.options import (
    CommandError,
    ConfigFile,
    DataDir,
    Json,
    load_config,
    read_books,
    read_typed,
    write_books,
)
from protocol.money import format_credits, parse_credits
from protocol.programs.commands import UsageError
from protocol.programs.output import print_json, print_table, say, time_text

if TYPE_CHECKING:
    from coordinator.db.api_keys import ApiKey
    from coordinator.db.engine import Connection

app = typer.Typer(help="API keys: make, list and revoke them.", no_args_is_help=True)


@app.command()
def create(
    account: Annotated[str, typer.Argument(help="Whose money the key spends: a name or an id.")],
    name: Annotated[str, typer.Option(help="What the key is for.")] = "",
    budget: Annotated[
        str | None, typer.Option(help="At most this many credits, ever.", show_default="no limit")
    ] = None,
    requests_per_minute: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, show_default="no limit")
    ] = None,
    provider: Annotated[
        str | None,
        typer.Option(
            help="What its requests say of routing if they do not: a provider object as JSON.",
            show_default="nothing",
        ),
    ] = None,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Make a key. It is shown once, here, and never again."""
    from coordinator.accounts import check_name, find_by_name
    from coordinator.db.api_keys import create_api_key
    from coordinator.db.custodial_keys import find_custodial_key
    from coordinator.db.key_routings import store_key_routing
    from protocol.net.clock import SystemClock

    if name:
        check_name(name)
    routing = _parse_provider(provider)
    with write_books(load_config(data_dir, config_file)) as conn:
        owner = find_by_name(conn, account)
        if find_custodial_key(conn, owner.id) is None:
            raise CommandError(
                f"account {account!r} signs with a key of its own; API keys are for accounts whose "
                "key we keep: create one without --peer-id"
            )
        secret, key = create_api_key(
            conn,
            owner.id,
            name,
            now_ms=SystemClock().now_ms(),
            entropy=os.urandom,
            budget_nano=_parse_budget(budget),
            requests_per_minute=requests_per_minute,
        )
        if routing is not None:
            store_key_routing(conn, key.id, routing)
    if as_json:
        print_json({"key": secret, **_plain(key)})
        return
    say(f"Key {key.id} of account {owner.label or owner.id}. Copy it now; it is not stored:")
    typer.echo(secret)


@app.command()
def revoke(
    key_id: Annotated[str, typer.Argument(help="The key's id, as `keys list` shows it.")],
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Let no request in with this key any more."""
    from coordinator.db.api_keys import revoke_api_key
    from protocol.net.clock import SystemClock

    with write_books(load_config(data_dir, config_file)) as conn:
        if not revoke_api_key(conn, key_id, now_ms=SystemClock().now_ms()):
            raise CommandError(f"there is no key {key_id!r} that could be revoked")
    if as_json:
        print_json({"revoked": key_id})
    else:
        say(f"Key {key_id} is revoked.")


@app.command("list")
def list_keys(
    account: Annotated[str | None, typer.Argument(help="Of one account; all if left out.")] = None,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Every key with its use; the keys themselves are not stored."""
    from coordinator.accounts import find_by_name
    from coordinator.db.api_keys import list_api_keys

    def query(conn: "Connection") -> "list[ApiKey]":
        owner = find_by_name(conn, account).id if account is not None else None
        return list_api_keys(conn, account=owner)

    found = read_books(load_config(data_dir, config_file), query)
    if as_json:
        print_json([_plain(key) for key in found])
        return
    print_table(
        ("id", "begins", "name", "account", "created", "spent", "budget", "state"),
        [
            (
                key.id,
                f"{key.prefix}…",
                key.name or "-",
                key.account,
                time_text(key.created_at_ms),
                format_credits(key.spent_nano),
                "-" if key.budget_nano is None else format_credits(key.budget_nano),
                "active" if key.revoked_at_ms is None else "revoked",
            )
            for key in found
        ],
    )


def _plain(key: "ApiKey") -> dict[str, object]:
    return asdict(key)


def _parse_provider(text: str | None) -> str | None:
    """As it will be read with each request. Raises UsageError."""
    from coordinator.gateway.errors import ApiError
    from coordinator.gateway.http.routing_params import read_provider_header, read_routing
    from coordinator.gateway.http.strict_json import Fields

    if text is None:
        return None
    try:
        provider = dict(read_provider_header(text))
        read_routing(Fields({"model": "any", "provider": provider}))
    except ApiError as error:
        raise UsageError(f"--provider: {error}") from None
    return json.dumps(provider)


def _parse_budget(text: str | None) -> int | None:
    return read_typed(parse_credits, text) if text is not None else None
