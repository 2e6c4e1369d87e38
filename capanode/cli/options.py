"""Options that mean the same in every command, each declared once."""

from pathlib import Path
from typing import Annotated

import typer

from capanode.config import PROGRAM, NodeConfig
from protocol.programs import setting_options

ConfigFile = setting_options.ConfigFile
Json = setting_options.Json
DataDir = Annotated[
    Path | None,
    typer.Option(
        "--data-dir", help="Where key, configuration and receipts are.", show_default=False
    ),
]
ModelStoreDir = Annotated[
    Path | None, typer.Option("--model-store", help="Where models lie.", show_default=False)
]


def load_config(
    data_dir: Path | None = None, file: Path | None = None, **flags: object
) -> NodeConfig:
    return setting_options.load_config(NodeConfig, PROGRAM, file, data_dir=data_dir, **flags)
