"""`coordinator start`: run the market of this machine."""

from typing import Annotated

import trio
import typer

from coordinator.cli.options import ConfigFile, DatabaseUrl, DataDir, Json, load_config
from coordinator.endpoint import Endpoint
from protocol.programs.log import LogFormat, configure_logging
from protocol.programs.output import print_json, say


def start(
    data_dir: DataDir = None,
    config_file: ConfigFile = None,
    listen: Annotated[
        list[str] | None,
        typer.Option(help="Multiaddr for nodes and clients; may be repeated.", show_default=False),
    ] = None,
    http: Annotated[
        str | None, typer.Option(help="HOST:PORT of the HTTP gateway.", show_default=False)
    ] = None,
    database: DatabaseUrl = None,
    fee_bps: Annotated[
        int | None,
        typer.Option(help="Our share of charges, in hundredths of a percent.", show_default=False),
    ] = None,
    log_level: Annotated[
        str | None, typer.Option(help="debug, info, warning or error.", show_default=False)
    ] = None,
    log_format: Annotated[
        LogFormat | None, typer.Option(help="For people or for programs.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """Serve nodes, clients and the OpenAI-compatible API until Ctrl-C."""
    config = load_config(
        data_dir,
        config_file,
        listen=listen,
        http=http,
        database=database,
        fee_bps=fee_bps,
        log_level=log_level,
        log_format=log_format,
    )
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
        say("Ctrl-C stops it.")

    # Imported here: the commands that only look at the books need neither network nor gateway.
    from coordinator.serve import serve

    trio.run(serve, config, on_ready)
