"""`coordinator config`: what the settings are, and where each came from."""

import typer

from coordinator.cli.options import ConfigFile, DataDir, Json, load_config
from coordinator.settings import SETTINGS
from protocol.programs.output import print_json, print_table

app = typer.Typer(help="The settings.", no_args_is_help=True)


@app.command()
def show(data_dir: DataDir = None, config_file: ConfigFile = None, as_json: Json = False) -> None:
    """Every setting with its value, its source and its meaning."""
    config = load_config(data_dir, config_file)
    if as_json:
        print_json(
            {
                setting.name: {
                    "value": _text(getattr(config, setting.name)),
                    "source": config.sources[setting.name],
                }
                for setting in SETTINGS
            }
        )
        return
    print_table(
        ("setting", "value", "from", "meaning"),
        [
            (
                setting.name,
                _text(getattr(config, setting.name)),
                config.sources[setting.name],
                setting.meaning,
            )
            for setting in SETTINGS
        ],
    )


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, dict):
        return ", ".join(value) or "-"
    return str(value)
