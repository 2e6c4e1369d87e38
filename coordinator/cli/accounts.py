"""`coordinator accounts`: who may buy, and how much money they have."""

import os
from functools import partial
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
from protocol.ids import parse_peer_id, parse_ulid
from protocol.money import format_credits, parse_credits
from protocol.programs.commands import UsageError
from protocol.programs.output import credits_text, print_facts, print_json, print_table, say, short

if TYPE_CHECKING:
    from coordinator.ledger.accounts import Account
    from coordinator.settings import CoordinatorConfig

app = typer.Typer(
    help="Accounts: create them, put money in, look at balances.", no_args_is_help=True
)

Name = Annotated[str, typer.Argument(help="The account's name, or its id.")]


@app.command()
def create(
    name: Annotated[str, typer.Argument(help="What to call the account.")],
    peer_id: Annotated[
        str | None,
        typer.Option(
            help="Its owner's peer id. Without one the coordinator keeps a key for the account, "
            "and its owner uses API keys."
        ),
    ] = None,
    opening_credit: Annotated[
        str | None, typer.Option("--credit", help="Credits to put in, for example 10.")
    ] = None,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Open an account."""
    from coordinator.accounts import create_account, credit_account
    from coordinator.vault import Vault
    from protocol.net.clock import SystemClock
    from protocol.programs.keyfile import load_or_create_key_file

    amount_nano = _parse_amount(opening_credit) if opening_credit is not None else 0
    if peer_id is not None:
        read_typed(parse_peer_id, peer_id)
    config = load_config(data_dir, config_file)
    clock = SystemClock()
    is_new = _check_founding(config)
    with write_books(config, create=True) as conn:
        key = load_or_create_key_file(config.key_path)
        account = create_account(
            conn, name, peer_id=peer_id, vault=Vault(key), clock=clock, entropy=os.urandom
        )
        if amount_nano:
            account = credit_account(
                conn, account.id, amount_nano, transfer_id=None, clock=clock, entropy=os.urandom
            )
    if is_new and not as_json:
        say(
            f"This is the first account of a new market, whose books are {config.database}. "
            f"`coordinator start` runs it."
        )
    _show(account, as_json)


def _check_founding(config: "CoordinatorConfig") -> bool:
    """Whether the books will be new. Raises CommandError on what looks like a client's machine: an
    account there is of no use in the market where it buys."""
    from coordinator.db.engine import database_exists

    if database_exists(config.database):
        return False
    if config.client_key_path.exists() and not config.key_path.exists():
        raise CommandError(
            f"{config.data_dir} belongs to a buyer and has no books: accounts are opened by the "
            "operator of the market where it buys. To found a market here, run `coordinator start` "
            "first"
        )
    return True


@app.command()
def credit(
    name: Name,
    amount: Annotated[str, typer.Argument(help="Credits to put in, for example 12.5.")],
    transfer_id: Annotated[
        str | None,
        typer.Option(
            "--id", help="An id of your own (a ULID): saying the same id again changes nothing."
        ),
    ] = None,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Put money into an account."""
    from coordinator.accounts import credit_account, find_by_name
    from protocol.net.clock import SystemClock

    amount_nano = _parse_amount(amount)
    ulid = read_typed(parse_ulid, transfer_id) if transfer_id is not None else None
    with write_books(load_config(data_dir, config_file)) as conn:
        account = find_by_name(conn, name)
        account = credit_account(
            conn,
            account.id,
            amount_nano,
            transfer_id=ulid,
            clock=SystemClock(),
            entropy=os.urandom,
        )
    _show(account, as_json)


@app.command()
def show(
    name: Annotated[str | None, typer.Argument(help="One account; all if left out.")] = None,
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    as_json: Json = False,
) -> None:
    """Balances of one account, or of all."""
    from coordinator.accounts import find_by_name
    from coordinator.db.accounts import list_accounts

    config = load_config(data_dir, config_file)
    if name is not None:
        _show(read_books(config, partial(find_by_name, name=name)), as_json)
        return
    accounts = read_books(config, partial(list_accounts, limit=10_000))
    if as_json:
        print_json([_plain(account) for account in accounts])
        return
    print_table(
        ("account", "name", "kind", "available", "held"),
        [
            (
                account.id,
                account.label,
                account.kind.value,
                format_credits(account.available_nano),
                format_credits(account.held_nano),
            )
            for account in accounts
        ],
    )


def _show(account: "Account", as_json: bool) -> None:
    if as_json:
        print_json(_plain(account))
        return
    print_facts(
        {
            "account": account.id,
            "name": account.label or short(account.id),
            "kind": account.kind.value,
            "available": credits_text(account.available_nano),
            "held": credits_text(account.held_nano),
        }
    )


def _plain(account: "Account") -> dict[str, object]:
    return {
        "id": account.id,
        "name": account.label,
        "kind": account.kind.value,
        "available_nano": account.available_nano,
        "held_nano": account.held_nano,
        "posted_nano": account.posted_nano,
    }


def _parse_amount(text: str) -> int:
    amount_nano = read_typed(parse_credits, text)
    if not amount_nano:
        raise UsageError("an amount of nothing changes nothing")
    return amount_nano
