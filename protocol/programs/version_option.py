"""The option `--version` of every program. Apart from `version`, so that programs without a command
line load nothing for it."""

from typing import Annotated

import typer

from protocol.programs.version import program_version


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
