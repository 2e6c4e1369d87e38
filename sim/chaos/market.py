"""The market that long runs ask: alike nodes that serve the recital, and clients with money."""

import socket

import trio

from sim.chaos.load import Load
from sim.chaos.model import NAME
from sim.latency import LATENCY_CLASSES
from sim.network import LocalNetwork, NodePlan
from sim.opening import open_buyer


async def open_recital_market(
    network: LocalNetwork, *, nodes: int, seed: int, listener: socket.socket | None = None
) -> Load:
    """Start a coordinator and nodes; returns the clients, who have not asked anything yet."""
    await network.start_coordinator(listener=listener)
    async with trio.open_nursery() as starting:
        for number in range(nodes):
            starting.start_soon(network.start_node, _plan(number))
    api_key = await open_buyer(network, nodes=nodes)
    return Load(network.endpoint.http, api_key, seed)


def _plan(number: int) -> NodePlan:
    """Nodes that cost about the same, so that all of them have work."""
    return NodePlan(
        name=f"node-{number + 1}",
        models=(NAME,),
        input_per_mtok="0.02",
        output_per_mtok=f"0.06{number}",
        image="0.0001",
        latency=LATENCY_CLASSES[0],
        threads=1,
    )
