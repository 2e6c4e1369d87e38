"""Options that mean the same in every command, each declared once."""

import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar

import trio
import typer

from coordinator.db.engine import Connection, Database, InlineRunner, open_database
from coordinator.settings import Config
from protocol.errors import CapaError

T = TypeVar("T")

DataDir = Annotated[
    Path | None,
    typer.Option("--data-dir", help="Where key, configuration and books are.", show_default=False),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="Another configuration file.", show_default=False),
]
DatabaseUrl = Annotated[
    str | None,
    typer.Option("--database", help="The books, as a URL.", show_default=False),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
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
        help="Multiaddr of the coordinator, with /p2p/. Default: the one running here.",
    ),
]


class CommandError(CapaError):
    """A command cannot do what was asked; the message says what to do."""


def load_config(data_dir: Path | None = None, file: Path | None = None, **flags: object) -> Config:
    """The one place of the command line that reads the environment."""
    return Config.resolve(file=file, env=os.environ, flags={"data_dir": data_dir, **flags})


def open_books(config: Config) -> Database:
    """The database of the coordinator on this machine, whether or not it is running."""
    if config.database.startswith("sqlite:///"):
        config.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    return open_database(config.database, InlineRunner())


def read_books(config: Config, query: Callable[[Connection], T]) -> T:
    """One query on one snapshot, beside a running coordinator and without keeping it waiting."""
    database = open_books(config)
    try:
        return trio.run(partial(database.read, query))
    finally:
        database.close()
