"""Gateways beside their users, before our market: one that asks for each lease, and one that has a
pool of them."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio

from sim.bench.gateways import GatewayUnderTest, running
from sim.chaos.model import NAME as MODEL
from sim.network import LocalNetwork, free_port, run_command

# By the name of the door: how many leases it takes ahead.
LEASES_AHEAD = {"edge": 0, "pool": 8}


@asynccontextmanager
async def open_edges(
    folder: Path, ours: GatewayUnderTest
) -> AsyncIterator[tuple[GatewayUnderTest, ...]]:
    """Before the market of `ours`."""
    network = ours.network
    assert network is not None, "it is a market of ours"
    async with AsyncExitStack() as stack:
        doors = [
            await stack.enter_async_context(_open_edge(folder / name, network, name, leases))
            for name, leases in LEASES_AHEAD.items()
        ]
        yield tuple(doors)


@asynccontextmanager
async def _open_edge(
    folder: Path, network: LocalNetwork, name: str, leases_ahead: int
) -> AsyncIterator[GatewayUnderTest]:
    await trio.to_thread.run_sync(_give_account, folder, network, name)
    port = free_port()
    arguments = [
        "gateway",
        f"--data-dir={folder}",
        f"--http=127.0.0.1:{port}",
        f"--coordinator={network.endpoint.addresses[0]}",
        f"--lease-pool={leases_ahead}",
        "--dial-private=loopback",
        "--no-keys",
    ]
    async with running(name, "coordinator", arguments, folder, port) as process:
        yield GatewayUnderTest(name, f"http://127.0.0.1:{port}", "none", MODEL, (process,))


def _give_account(folder: Path, network: LocalNetwork, name: str) -> None:
    folder.mkdir()
    key = f"--key={folder / 'client.key'}"
    peer_id = run_command("coordinator", "whoami", key, f"--data-dir={folder}").strip()
    data_dir = f"--data-dir={network.coordinator_dir}"
    create = ("accounts", "create", name, f"--peer-id={peer_id}", "--credit=1000", data_dir)
    run_command("coordinator", *create)
