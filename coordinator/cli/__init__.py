"""`coordinator`: run a market, and buy in one.

A module per group of commands. Commands only read options and print; data goes to stdout, talk to
stderr. `main` is the one place that turns errors into exit codes.
"""

import typer

from coordinator.cli import accounts, batch, config, gateway, jobs, keys, ledger, look, receipts
from coordinator.cli.chat import chat
from coordinator.cli.start import start
from coordinator.cli.submit import submit
from protocol.programs.commands import run_command
from protocol.programs.output import complain
from protocol.programs.version_option import add_version

app = typer.Typer(
    name="coordinator",
    help="Run a CapaCloud market, and buy inference in one.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
add_version(app, "coordinator")
app.command("start")(start)
app.command("chat")(chat)
app.command("submit")(submit)
app.command("quote")(look.quote)
app.command("models")(look.models)
app.command("nodes")(look.nodes)
app.command("balance")(look.balance)
app.command("whoami")(look.whoami)
app.add_typer(batch.app, name="batch")
app.add_typer(gateway.app, name="gateway")
app.add_typer(accounts.app, name="accounts")
app.add_typer(keys.app, name="keys")
app.add_typer(jobs.app, name="jobs")
app.add_typer(ledger.app, name="ledger")
app.add_typer(receipts.app, name="receipts")
app.add_typer(config.app, name="config")


def main() -> None:
    """Run a command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    run_command(app, complain)
