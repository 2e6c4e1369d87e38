"""Options that mean the same in every command, each declared once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import typer

from coordinator.settings import PROGRAM, CoordinatorConfig
from protocol.errors import CapaError, RemoteProtocolError
from protocol.limits import NAME_CHARS_MAX
from protocol.messages import Objective
from protocol.programs import setting_options
from protocol.programs.commands import UsageError

if TYPE_CHECKING:
    from coordinator.buyer_config import BuyingConfig
    from coordinator.db.engine import Connection, Database

T = TypeVar("T")

ConfigFile = setting_options.ConfigFile
Json = setting_options.Json
DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where key, configuration and books are.", show_default=False),
]
MaxTokens = Annotated[int, typer.Option(min=1, max=1_000_000, help="The longest answer.")]
Temperature = Annotated[
    float, typer.Option(min=0.0, max=2.0, help="How freely tokens are drawn; 0: the likeliest.")
]
KeyFile = Annotated[
    Path | None,
    typer.Option(
        "--key", help="The key to buy with; made on first use. Default: client.key in the data dir."
    ),
]
At = Annotated[
    str | None,
    typer.Option(
        "--coordinator",
        help="Multiaddr of the coordinator, with /p2p/. Default: that of the settings, or the one "
        "running here.",
    ),
]


def check_model(name: str) -> str:
    """For options and arguments that name a model."""
    if len(name) > NAME_CHARS_MAX:
        raise typer.BadParameter(f"a model's name has at most {NAME_CHARS_MAX} characters")
    return name


Model = Annotated[
    str,
    typer.Argument(help="A model's name, or its manifest digest.", callback=check_model),
]
Goal = Annotated[Objective, typer.Option(help="What matters more.")]


class CommandError(CapaError):
    """A command cannot do what was asked; the message says what to do."""


def read_typed(parse: Callable[[str], T], text: str) -> T:
    """What was typed, parsed. Raises UsageError."""
    try:
        return parse(text)
    except (ValueError, RemoteProtocolError) as error:
        raise UsageError(str(error)) from None


def load_config(
    data_dir: Path | None = None, file: Path | None = None, **flags: object
) -> CoordinatorConfig:
    return setting_options.load_config(CoordinatorConfig, PROGRAM, file, data_dir=data_dir, **flags)


def command_log_level(config: "BuyingConfig") -> str:
    """What a command logs at "info" says nothing that the command does not say."""
    return "warning" if config.sources["log_level"] == "default" else config.log_level


@contextmanager
def open_books(config: CoordinatorConfig, *, create: bool = False) -> "Iterator[Database]":
    """The database of the coordinator on this machine, whether or not it is running.

    Raises CommandError if there is none, unless it may be made: an audit of books that a slip of
    the keyboard has made just now would be green.
    """
    from coordinator.db.engine import InlineRunner, database_exists, open_database
    from protocol.programs.log import configure_logging

    # Unset, it would write to stdout, among the data.
    configure_logging(level=command_log_level(config), log_format=config.log_format)
    if create:
        config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    elif not database_exists(config.database):
        raise CommandError(
            f"there are no books at {config.database}: name the coordinator's data directory with "
            "--data-dir, or make books with `coordinator start` or `accounts create`"
        )
    database = open_database(config.database, InlineRunner())
    try:
        yield database
    finally:
        database.close()


@contextmanager
def write_books(config: CoordinatorConfig, *, create: bool = False) -> "Iterator[Connection]":
    """One transaction in the books: durable when the block ends, undone if it raises."""
    with open_books(config, create=create) as database, database.transaction() as conn:
        yield conn


def read_books(config: CoordinatorConfig, query: "Callable[[Connection], T]") -> T:
    """One query on one snapshot, beside a running coordinator and without keeping it waiting."""
    import trio

    with open_books(config) as database:
        return trio.run(partial(database.read, query))
