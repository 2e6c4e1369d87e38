"""When a network of real processes can be bought from."""

from coordinator.cli.market_session import open_market
from coordinator.settings import CoordinatorConfig
from sim.demo import open_account, wait_nodes
from sim.network import LocalNetwork


async def open_buyer(network: LocalNetwork, *, nodes: int) -> str:
    """The API key of an account with money, once so many nodes are attached. Raises
    NetworkError."""
    key = await open_account(network)
    await wait_attached(network, nodes)
    return key


async def wait_attached(network: LocalNetwork, nodes: int) -> None:
    """Raises NetworkError if they are not in time."""
    config = CoordinatorConfig.resolve(flags={"data_dir": network.coordinator_dir})
    async with open_market(config, at=None, key_path=None) as market:
        await wait_nodes(market, nodes, lambda offer, rtt_ms: None)
