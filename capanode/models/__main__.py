"""`python -m capanode.models pull NAME... --store DIR`: what the Makefile fetches demo models with.

Operators use `capanode models pull`, which does the same with the node's own configuration.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from capanode.models.catalog import load_catalog
from capanode.models.errors import ModelError
from capanode.models.library import ensure
from capanode.models.progress_bar import ConsoleProgress
from capanode.models.store import ModelStore


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m capanode.models", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("pull", help="get models from the catalog")
    command.add_argument("names", nargs="+", metavar="NAME")
    command.add_argument("--store", type=Path, required=True, metavar="DIR")
    options = parser.parse_args(arguments)
    console = Console(stderr=True)
    try:
        store, catalog = ModelStore(options.store), load_catalog()
        for name in options.names:
            with ConsoleProgress(console) as progress:
                model = ensure(store, catalog, name, progress=progress)
            print(f"{name} {model.digest[:12]} {model.path}")
    except ModelError as error:
        console.print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
