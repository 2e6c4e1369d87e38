"""Which version of us this is: what `--version` and `version` of every program print."""

from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

PACKAGE = "capacloud"


def program_version() -> str:
    try:
        return version(PACKAGE)
    except PackageNotFoundError:
        return "unknown"


def add_version(app: typer.Typer, program: str) -> None:
    """Give a program the option `--version`."""

    def tell(wanted: bool) -> None:
        if wanted:
            typer.echo(f"{program} {program_version()}")
            raise typer.Exit

    @app.callback()
    def root(
        _version: Annotated[
            bool,
            typer.Option("--version", callback=tell, is_eager=True, help="Print the version."),
        ] = False,
    ) -> None:
        """What comes before a command."""
