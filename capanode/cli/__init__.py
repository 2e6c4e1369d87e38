"""`capanode`: lend this machine's compute to a market.

A module per command or group. Commands only read options and print; data goes to stdout, talk to
stderr. `main` is the one place that turns errors into exit codes.
"""

import typer

from capanode.cli import (
    config,
    doctor,
    earnings,
    init,
    models,
    owner,
    service,
    setup,
    start,
    status,
)
from protocol.programs.commands import run_command
from protocol.programs.output import complain
from protocol.programs.version import program_version
from protocol.programs.version_option import add_version

app = typer.Typer(
    name="capanode",
    help="Lend this machine's compute to a CapaCloud market.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
add_version(app, "capanode")
app.command("setup")(setup.setup)
app.command("init")(init.init)
app.command("start")(start.start)
app.command("status")(status.status)
app.command("pause")(owner.pause)
app.command("resume")(owner.resume)
app.command("drain")(owner.drain)
app.command("measure")(owner.measure)
app.command("earnings")(earnings.earnings)
app.command("doctor")(doctor.doctor)
app.add_typer(models.app, name="models")
app.add_typer(config.app, name="config")
app.add_typer(service.app, name="service")


@app.command("version")
def version() -> None:
    """Print the program's version."""
    typer.echo(program_version())


def main() -> None:
    """Run a command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    run_command(app, complain)
