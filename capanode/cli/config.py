"""`capanode config`: what the settings are, and where each came from."""

import typer

from capanode.cli.options import ConfigFile, DataDir, Json, load_config
from capanode.config import PROGRAM
from capanode.settings import SETTINGS, ModelSettings
from protocol.money import format_credits
from protocol.programs.output import print_json, print_table

app = typer.Typer(help="The settings.", no_args_is_help=True)


@app.command()
def show(data_dir: DataDir = None, config_file: ConfigFile = None, as_json: Json = False) -> None:
    """Every setting with its value, its source, its variable and its meaning."""
    config = load_config(data_dir, config_file)
    rows = [
        (s.name, _text(s.name, getattr(config, s.name)), config.sources[s.name]) for s in SETTINGS
    ]
    if as_json:
        print_json({name: {"value": value, "source": source} for name, value, source in rows})
        return
    print_table(
        ("setting", "value", "from", "variable", "meaning"),
        [
            (*row, f"{PROGRAM.upper()}_{setting.name.upper()}", setting.meaning)
            for row, setting in zip(rows, SETTINGS, strict=True)
        ],
    )


def _text(name: str, value: object) -> str:
    if name.startswith("price_") and isinstance(value, int):
        return format_credits(value)
    if isinstance(value, tuple):
        return ", ".join(v.name if isinstance(v, ModelSettings) else str(v) for v in value)
    return str(value)
