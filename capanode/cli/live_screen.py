"""What `capanode start` keeps on a terminal: the whole status, redrawn every second, and milestones
and warnings as lines above it."""

import errno
import os
import sys
from dataclasses import asdict
from typing import Any

import structlog
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from capanode.cli.status_view import StatusTable, facts_of, tables_of
from capanode.milestones import Milestone
from capanode.status import NodeStatus
from protocol.programs.commands import drop_stdout
from protocol.text import printable

log = structlog.get_logger(__name__)


class Terminal(Console):
    """A console that tells its program of a broken pipe instead of ending it."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


class LiveScreen:
    """For people at a terminal. Made before the log is set up, whose lines go above the status."""

    def __init__(self, terminal: Terminal | None = None) -> None:
        self._console = terminal or Terminal(highlight=False, markup=False)
        self._live = Live(
            console=self._console,
            auto_refresh=False,
            # A log that was led into a file stays there.
            redirect_stderr=sys.stderr.isatty(),
            vertical_overflow="ellipsis",
        )
        self._is_open = True
        self._live.start()

    def milestone(self, milestone: Milestone) -> None:
        self._print(milestone.words)
        if milestone.name == "ready":
            self._print(f"peer id {milestone.facts['peer_id']}; Ctrl-C stops the node")

    def status(self, status: NodeStatus) -> None:
        try:
            self._live.update(drawing(asdict(status)), refresh=True)
        except OSError as error:
            self._lose_output(error)

    def close(self) -> None:
        self._print("stopped")

    def release(self) -> None:
        """Give the terminal back as it was; whatever ended the node."""
        try:
            self._live.stop()
        except OSError as error:
            self._lose_output(error)

    def _print(self, words: str) -> None:
        try:
            self._console.print(Text(printable(words)))
        except OSError as error:
            self._lose_output(error)

    def _lose_output(self, error: OSError) -> None:
        """A terminal that went away does not end a node that has jobs."""
        if self._is_open:
            self._is_open = False
            drop_stdout()
            self._console.quiet = True
            log.warning("output_closed", error=error.strerror)


def drawing(plain: dict[str, Any]) -> Group:
    """The status for a terminal of any width. Names come from strangers: no markup is obeyed."""
    facts = Table.grid(padding=(0, 2))
    for name, value in facts_of(plain).items():
        facts.add_row(Text(name, style="dim"), Text(printable(value), overflow="fold"))
    tables = [_table(table) for table in tables_of(plain)]
    warnings = [Text(f"! {printable(each)}", style="bold red") for each in plain["warnings"]]
    # A terminal that is too low cuts the end.
    return Group(facts, *warnings, *tables)


def _table(told: StatusTable) -> Table:
    table = Table(*told.headings, box=SIMPLE_HEAD, pad_edge=False)
    for row in told.rows:
        table.add_row(*(Text(printable(cell), overflow="fold") for cell in row))
    return table
