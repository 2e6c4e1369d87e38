"""`capanode start`: run the node of this machine and show how it is doing."""

import sys
from typing import Annotated

import typer

from capanode.config import PROGRAM, NodeConfig
from capanode.service_unit import DRAINED_EXIT_CODE
from protocol.programs.setting_options import takes_settings
from protocol.programs.version import program_version


@takes_settings(NodeConfig, PROGRAM)
def start(
    config: NodeConfig,
    json_lines: Annotated[
        bool, typer.Option("--json-lines", help="One JSON object per event, for scripts.")
    ] = False,
) -> None:
    """Serve jobs until Ctrl-C; a second Ctrl-C does not wait for those that run."""
    import trio

    from capanode.cli.live_screen import LiveScreen
    from capanode.cli.screen import JsonLines, Screen
    from capanode.serve import NodeEnd, serve
    from protocol.programs.log import configure_logging

    on_terminal = sys.stdout.isatty() and not json_lines
    screen: JsonLines | LiveScreen | Screen = JsonLines() if json_lines else Screen()
    if on_terminal:
        screen = LiveScreen()

    async def run() -> NodeEnd:
        return await serve(
            config,
            software=f"capanode/{program_version()}",
            on_milestone=screen.milestone,
            on_status=screen.status,
        )

    try:
        level = _level(config, on_terminal=on_terminal)
        configure_logging(level=level, log_format=config.log_format)
        end = trio.run(run)
        screen.close()
    finally:
        screen.release()
    if end is NodeEnd.DRAINED:
        raise typer.Exit(DRAINED_EXIT_CODE)


def _level(config: NodeConfig, *, on_terminal: bool) -> str:
    """On a terminal the status line tells what the log's information would; it can be asked for."""
    if on_terminal and config.sources["log_level"] == "default":
        return "warning"
    return config.log_level
