"""`coordinator config`: what the settings are, and where each came from."""

import typer

from coordinator.cli.options import ConfigFile, DataDir, Json, load_config
from coordinator.settings import PROGRAM
from protocol.programs.setting_options import show_config

app = typer.Typer(help="The settings.", no_args_is_help=True)


@app.command()
def show(data_dir: DataDir = None, config_file: ConfigFile = None, as_json: Json = False) -> None:
    """Every setting with its value, its source, its variable and its meaning."""
    show_config(load_config(data_dir, config_file), PROGRAM, as_json=as_json)
