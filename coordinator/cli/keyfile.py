"""`capacloud key`: the key that a buyer signs with."""

import typer

from coordinator.cli.buyer import BuyerOptions, takes_buyer
from protocol.programs.output import print_facts, print_json, say
from protocol.programs.setting_options import Json

app = typer.Typer(help="The key that you buy with.", no_args_is_help=True)


@app.command()
@takes_buyer
def init(buyer: BuyerOptions, as_json: Json = False) -> None:
    """Make a key file that only you can read, and print its peer id."""
    from protocol.programs.keyfile import create_key_file

    path = buyer.key_path if buyer.key_path is not None else buyer.config.client_key_path
    peer_id = create_key_file(path).peer_id
    if as_json:
        print_json({"peer_id": peer_id, "path": str(path)})
        return
    print_facts({"peer id": peer_id, "file": path})
    say("Back the file up. The operator of a market opens an account for this peer id.")


@app.command()
@takes_buyer
def show(buyer: BuyerOptions, as_json: Json = False) -> None:
    """Print the key's peer id: the id of your account in every market."""
    from protocol.programs.keyfile import load_key_file

    path = buyer.key_path if buyer.key_path is not None else buyer.config.client_key_path
    peer_id = load_key_file(path).peer_id
    if as_json:
        print_json({"peer_id": peer_id, "path": str(path)})
    else:
        typer.echo(peer_id)
