"""`coordinator start`: run the market of this machine."""

from functools import partial
from typing import Annotated

import typer

from coordinator.endpoint import Endpoint
from coordinator.settings import PROGRAM, CoordinatorConfig
from protocol.programs.log_format import LogFormat
from protocol.programs.output import print_json, say
from protocol.programs.setting_options import Json, takes_settings


@takes_settings(CoordinatorConfig, PROGRAM)
def start(
    config: CoordinatorConfig,
    accept_clock: Annotated[
        bool,
        typer.Option(
            "--accept-clock", help="Start although this machine's clock contradicts the books."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Serve nodes, clients and the OpenAI-compatible API until Ctrl-C."""
    import trio

    from coordinator.serve import serve
    from protocol.programs.log import configure_logging

    configure_logging(level=config.log_level, log_format=config.log_format)

    def on_ready(endpoint: Endpoint) -> None:
        if as_json:
            print_json(
                {
                    "peer_id": endpoint.peer_id,
                    "addresses": endpoint.addresses,
                    "http": endpoint.http,
                }
            )
            return
        typer.echo(f"coordinator {endpoint.peer_id}")
        for address in endpoint.addresses:
            typer.echo(f"  nodes and clients  {address}")
        typer.echo(f"  HTTP API           {endpoint.http}/v1")
        # A collector of logs reads stderr then.
        if config.log_format is LogFormat.CONSOLE:
            say("Ctrl-C stops it.")

    trio.run(partial(serve, config, on_ready, accept_clock=accept_clock))
