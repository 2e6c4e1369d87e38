"""`python -m sim up`: a market to work against, until Ctrl-C."""

import json
from pathlib import Path

import trio
import typer

from coordinator.cli.market_session import open_market
from coordinator.settings import CoordinatorConfig
from protocol.offers import NodeOffer
from sim.demo import CHAT_MODEL, demo_plans, open_account, wait_nodes
from sim.network import LocalNetwork, open_network
from sim.processes import ProcessFailed


async def run_up(models: Path, folder: Path, nodes: int, http: str, as_json: bool) -> None:
    """Start everything, say how to reach it, and wait."""

    def lost(failed: ProcessFailed) -> None:
        _tell(as_json, f"the market goes on without a node: {failed}")

    async with open_network(folder, models, on_node_lost=lost) as network:
        _tell(as_json, "starting the coordinator")
        await network.start_coordinator(http=http)
        _tell(as_json, f"starting {nodes} nodes")
        async with trio.open_nursery() as starting:
            for plan in demo_plans(nodes):
                starting.start_soon(network.start_node, plan)
        key = await open_account(network)
        await _wait_joined(network, nodes, as_json)
        _print_endpoint(network, key, as_json)
        await trio.sleep_forever()


async def _wait_joined(network: LocalNetwork, nodes: int, as_json: bool) -> None:
    def joined(offer: NodeOffer, rtt_ms: float | None) -> None:
        names = ", ".join(model.name for model in offer.models)
        _tell(as_json, f"{offer.node[-8:]} joined from {offer.region}: {names}")

    config = CoordinatorConfig.resolve(flags={"data_dir": network.coordinator_dir})
    async with open_market(config, at=None, key_path=None) as market:
        await wait_nodes(market, nodes, joined)


def _print_endpoint(network: LocalNetwork, key: str, as_json: bool) -> None:
    endpoint = network.endpoint
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "http": endpoint.http,
                    "api_key": key,
                    "coordinator": endpoint.addresses[0],
                    "data_dir": str(network.coordinator_dir),
                    "model": CHAT_MODEL,
                    "pids": {
                        "coordinator": network.coordinator.pid,
                        **{node.plan.name: node.process.pid for node in network.nodes},
                    },
                }
            )
        )
        return
    typer.echo(f"API          {endpoint.http}/v1")
    typer.echo(f"API key      {key}")
    typer.echo(f"coordinator  {endpoint.addresses[0]}")
    typer.echo(f"commands     coordinator … --data-dir {network.coordinator_dir}")
    typer.echo("Ctrl-C stops everything.", err=True)


def _tell(as_json: bool, text: str) -> None:
    if not as_json:
        typer.echo(text, err=True)
