"""`python -m capanode.models pull NAME... --store DIR`: what the Makefile fetches demo models with.

Operators use `capanode models pull`, which does the same with the node's own configuration.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as ProgressBar

from capanode.models.catalog import load_catalog
from capanode.models.errors import ModelError
from capanode.models.library import ensure
from capanode.models.progress import Progress
from capanode.models.store import ModelStore


class ConsoleProgress:
    """Shows one line per step: a moving bar on a terminal, a plain line in a log."""

    def __init__(self, console: Console) -> None:
        self.bar = ProgressBar(
            TextColumn("{task.description}"),
            BarColumn(),
            DownloadColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._console = console
        self._step = ""
        self._task = self.bar.add_task("", total=None, visible=False)

    def __call__(self, progress: Progress) -> None:
        if progress.step != self._step:
            self._step = progress.step
            self._task = self.bar.add_task(progress.step, total=progress.total)
            if not self._console.is_terminal:
                self._console.print(f"  {progress.step} ...")
        self.bar.update(self._task, completed=progress.done, total=progress.total)


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
            show = ConsoleProgress(console)
            with show.bar:
                model = ensure(store, catalog, name, progress=show)
            print(f"{name} {model.digest[:12]} {model.path}")
    except ModelError as error:
        console.print(f"error: {error}", style="red", highlight=False, soft_wrap=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
