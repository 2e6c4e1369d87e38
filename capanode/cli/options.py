"""Options that mean the same in every command, each declared once."""

import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer

from capanode.config import Config

DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Where key, configuration and receipts are.", show_default=False
    ),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="Another configuration file.", show_default=False),
]
ModelStoreDir = Annotated[
    Path | None, typer.Option("--model-store", help="Where models lie.", show_default=False)
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
Listen = Annotated[
    list[str] | None,
    typer.Option(help="Multiaddr for clients; may be repeated.", show_default=False),
]
Announce = Annotated[
    list[str] | None,
    typer.Option(help="What to tell others instead of --listen.", show_default=False),
]
Coordinators = Annotated[
    list[str] | None,
    typer.Option(
        "--coordinator",
        help="A market to join: its multiaddr with /p2p/; may be repeated.",
        show_default=False,
    ),
]
Region = Annotated[str | None, typer.Option(help="Where this machine stands.", show_default=False)]


def load_config(data_dir: Path | None = None, file: Path | None = None, **flags: object) -> Config:
    """The one place of the program that reads the environment."""
    return Config.resolve(file=file, env=os.environ, flags={"data_dir": data_dir, **flags})


def program_version() -> str:
    try:
        return version("capacloud")
    except PackageNotFoundError:
        return "unknown"
