"""`capanode status`: how the node that runs here is doing."""

import typer

from capanode.cli.options import ConfigFile, DataDir, Json, load_config
from capanode.cli.status_view import facts_of, tables_of
from capanode.status_socket import ask_status
from protocol.programs.output import print_facts, print_json, print_table


def status(data_dir: DataDir = None, config_file: ConfigFile = None, as_json: Json = False) -> None:
    """Devices, models, load, earnings, coordinators and the last refusals of the running node."""
    plain = ask_status(load_config(data_dir, config_file).status_socket)
    if as_json:
        print_json(plain)
        return
    print_facts(facts_of(plain))
    for table in tables_of(plain):
        print_table(table.headings, table.rows)
    for warning in plain["warnings"]:
        typer.echo(f"! {warning}")
