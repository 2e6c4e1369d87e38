"""What the gateway bench compares: our market, the mock alone, and other gateways before the mock.

Each is started for real and asked over a loopback socket. Those of others live in environments of
their own below `.capacloud/bench` (`make bench-deps`); one that is not there is left out.
"""

import secrets
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import trio

from capanode.models.store import ModelStore
from sim.chaos.model import NAME as MODEL
from sim.chaos.model import add_recital
from sim.latency import LATENCY_CLASSES
from sim.network import LocalNetwork, NetworkError, NodePlan, free_port, open_network
from sim.opening import open_buyer
from sim.processes import ChildProcess

ENVIRONMENTS = Path.cwd() / ".capacloud/bench"
NODES = 4
# What one client may run at one node, and on one stream to it.
SLOTS = 256
_READY_WITHIN_S = 90.0
_POLL_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class GatewayUnderTest:
    """One door. `processes` are what its work is done in, the mock's own apart; `network` is the
    market behind ours."""

    name: str
    url: str
    key: str
    model: str
    processes: tuple[psutil.Process, ...]
    network: LocalNetwork | None = None

    def cpu_s(self) -> float:
        times = [process.cpu_times() for process in self.processes]
        return float(sum(spent.user + spent.system for spent in times))

    def memory_bytes(self) -> int:
        return sum(process.memory_info().rss for process in self.processes)


@asynccontextmanager
async def open_ours(folder: Path) -> AsyncIterator[GatewayUnderTest]:
    """A coordinator, and nodes whose engine is the mock, each as its own processes."""
    store = folder / "models"
    await trio.to_thread.run_sync(lambda: add_recital(ModelStore(store)))
    async with open_network(folder / "market", store.absolute()) as network:
        await network.start_coordinator()
        for number in range(NODES):
            await network.start_node(_plan(number))
        key = await open_buyer(network, nodes=NODES)
        pids = [network.coordinator.pid, *(node.process.pid for node in network.nodes)]
        processes = tuple(map(psutil.Process, pids))
        yield GatewayUnderTest("ours", network.endpoint.http, key, MODEL, processes, network)


def _plan(number: int) -> NodePlan:
    return NodePlan(
        name=f"node-{number + 1}",
        models=(MODEL,),
        input_per_mtok="0.02",
        output_per_mtok="0.06",
        image="0.0001",
        latency=LATENCY_CLASSES[0],
        slots=SLOTS,
        threads=1,
        program="sim.bench.mock.node",
        options=(f"--per-client-max={SLOTS}",),
    )


@asynccontextmanager
async def open_mock(folder: Path) -> AsyncIterator[GatewayUnderTest]:
    """The mock behind nothing."""
    port = free_port()
    arguments = [str(port)]
    async with running("mock", "sim.bench.mock.upstream", arguments, folder, port) as process:
        yield GatewayUnderTest("mock", f"http://127.0.0.1:{port}", "none", "mock", (process,))


@asynccontextmanager
async def open_litellm(folder: Path, upstream: str) -> AsyncIterator[GatewayUnderTest | None]:
    """LiteLLM's proxy with one worker and a master key; None if it is not installed."""
    python = ENVIRONMENTS / "litellm" / "bin" / "python"
    if not python.exists():
        yield None
        return
    port, key = free_port(), f"sk-{secrets.token_hex(16)}"
    config = folder / "litellm.yaml"
    config.write_text(
        "model_list:\n"
        "  - model_name: mock\n"
        f"    litellm_params: {{model: openai/mock, api_base: {upstream}/v1, api_key: none}}\n"
        f"general_settings: {{master_key: {key}}}\n"
    )
    arguments = [f"--config={config}", "--host=127.0.0.1", f"--port={port}", "--num_workers=1"]
    module = "litellm.proxy.proxy_cli"
    async with running("litellm", module, arguments, folder, port, python) as process:
        yield GatewayUnderTest("litellm", f"http://127.0.0.1:{port}", key, "mock", (process,))


@asynccontextmanager
async def open_vllm_router(folder: Path, upstream: str) -> AsyncIterator[GatewayUnderTest | None]:
    """vLLM's router, which checks no keys and keeps no books; None if it is not installed."""
    python = ENVIRONMENTS / "vllm-router" / "bin" / "python"
    if not python.exists():
        yield None
        return
    port = free_port()
    arguments = [
        "--host=127.0.0.1",
        f"--port={port}",
        f"--prometheus-port={free_port()}",
        "--policy=round_robin",
        "--worker-urls",
        upstream,
    ]
    module = "vllm_router.launch_router"
    async with running("vllm-router", module, arguments, folder, port, python) as process:
        yield GatewayUnderTest(
            "vllm_router", f"http://127.0.0.1:{port}", "none", "mock", (process,)
        )


@asynccontextmanager
async def running(
    name: str,
    module: str,
    arguments: list[str],
    folder: Path,
    port: int,
    python: Path | None = None,
) -> AsyncIterator[psutil.Process]:
    log_path = folder / f"{name}.log"
    child = ChildProcess(
        name, module, arguments, log_path=log_path, python=str(python or sys.executable)
    )
    async with trio.open_nursery() as nursery:
        await nursery.start(child.run)
        await _wait_answering(child, port)
        yield psutil.Process(child.pid)
        nursery.cancel_scope.cancel()


async def _wait_answering(child: ChildProcess, port: int) -> None:
    """Raises NetworkError."""
    async with httpx.AsyncClient(trust_env=False) as client:
        with trio.move_on_after(_READY_WITHIN_S):
            while True:
                try:
                    await client.get(f"http://127.0.0.1:{port}/v1/models")
                except httpx.TransportError:
                    await trio.sleep(_POLL_EVERY_S)
                else:
                    return
    raise NetworkError(f"{child.name} does not answer:\n{child.log_tail()}")
