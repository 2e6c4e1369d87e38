"""`capacloud`: buy inference, from anywhere.

The same commands that `coordinator` has for buying, with settings of their own and without what
runs a market: it needs neither books nor torch.
"""

import typer

from coordinator.buyer_config import PROGRAM, BuyerConfig
from coordinator.cli import batch, gateway, keyfile, look, own
from coordinator.cli.buyer import BuyerOptions, BuyerSettings, takes_buyer
from coordinator.cli.chat import chat
from coordinator.cli.submit import submit
from protocol.programs.commands import run_command
from protocol.programs.output import complain
from protocol.programs.setting_options import Json, show_config
from protocol.programs.version_option import add_version

app = typer.Typer(
    name="capacloud",
    help="Buy inference in a CapaCloud market.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"obj": BuyerSettings(BuyerConfig, PROGRAM)},
)
add_version(app, "capacloud")
config_app = typer.Typer(help="The settings.", no_args_is_help=True)


@config_app.command("show")
@takes_buyer
def show_settings(buyer: BuyerOptions, as_json: Json = False) -> None:
    """Every setting with its value, its source, its variable and its meaning."""
    show_config(buyer.config, PROGRAM, as_json=as_json)


app.command("chat")(chat)
app.command("submit")(submit)
app.command("quote")(look.quote)
app.command("models")(look.models)
app.command("nodes")(look.nodes)
app.command("balance")(look.balance)
app.add_typer(batch.app, name="batch")
app.add_typer(own.jobs_app, name="jobs")
app.add_typer(own.receipts_app, name="receipts")
app.add_typer(keyfile.app, name="key")
app.add_typer(gateway.app, name="gateway")
app.add_typer(config_app, name="config")


def main() -> None:
    """Run a command. Exit codes: 0 done, 1 failed, 2 wrong usage, 130 interrupted."""
    run_command(app, complain)
