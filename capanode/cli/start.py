"""`capanode start`: run the node of this machine and show how it is doing."""

import json
import sys
from dataclasses import asdict
from typing import Annotated

import trio
import typer

from capanode.cli.options import program_version
from capanode.cli.status import status_line
from capanode.config import PROGRAM, NodeConfig
from capanode.milestones import Milestone
from capanode.status import NodeStatus
from protocol.programs.log import configure_logging
from protocol.programs.setting_options import takes_settings

# A script or a log file gets a line a minute, a terminal one that changes in place every second.
_LINE_EVERY_S = 60.0
_CLEAR_LINE = "\r\x1b[2K"


@takes_settings(NodeConfig, PROGRAM)
def start(
    config: NodeConfig,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="One JSON object per event, for scripts.")
    ] = False,
) -> None:
    """Serve jobs until Ctrl-C; a second Ctrl-C does not wait for those that run."""
    on_terminal = sys.stdout.isatty() and not json_lines
    configure_logging(level=_level(config, on_terminal=on_terminal), log_format=config.log_format)
    screen: JsonLines | Screen = JsonLines() if json_lines else Screen(on_terminal=on_terminal)

    # Imported here: the other commands need neither the sandbox nor the network.
    from capanode.serve import serve

    async def run() -> None:
        await serve(
            config,
            software=f"capanode/{program_version()}",
            on_milestone=screen.milestone,
            on_status=screen.status,
        )

    trio.run(run)
    screen.close()


def _level(config: NodeConfig, *, on_terminal: bool) -> str:
    """On a terminal the status line tells what the log's information would; it can be asked for."""
    if on_terminal and config.sources["log_level"] == "default":
        return "warning"
    return config.log_level


class JsonLines:
    """For scripts: `{"event": …}` per milestone, and the whole status once a minute."""

    def __init__(self) -> None:
        self._next_at = 0.0

    def milestone(self, milestone: Milestone) -> None:
        self._print({"event": milestone.name, **milestone.facts})

    def status(self, status: NodeStatus) -> None:
        if trio.current_time() >= self._next_at:
            self._next_at = trio.current_time() + _LINE_EVERY_S
            self._print({"event": "status", **asdict(status)})

    def close(self) -> None:
        self._print({"event": "stopped"})

    def _print(self, value: object) -> None:
        print(json.dumps(value, ensure_ascii=False), flush=True)


class Screen:
    """For people: milestones as lines, and below them one line that is kept up to date."""

    def __init__(self, *, on_terminal: bool) -> None:
        self._on_terminal = on_terminal
        self._next_at = 0.0
        self._last = ""

    def milestone(self, milestone: Milestone) -> None:
        print(f"{_CLEAR_LINE if self._on_terminal else ''}{milestone.words}", flush=True)
        if milestone.name == "ready":
            print(f"peer id {milestone.facts['peer_id']}; Ctrl-C stops the node", flush=True)

    def status(self, status: NodeStatus) -> None:
        line = status_line(status)
        if self._on_terminal:
            print(f"{_CLEAR_LINE}{line}", end="", flush=True)
        elif line != self._last and trio.current_time() >= self._next_at:
            self._next_at = trio.current_time() + _LINE_EVERY_S
            self._last = line
            print(line, flush=True)

    def close(self) -> None:
        print(f"{_CLEAR_LINE if self._on_terminal else ''}stopped", flush=True)
