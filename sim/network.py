"""A whole market on loopback: one coordinator and N nodes as real processes, at chosen distances.

Everything is what an operator would run: the same programs, keys, sandboxes and books. Only the
distance is made up, by a proxy in front of each node (`sim.latency`).
"""

import json
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from coordinator.endpoint import Endpoint, read_endpoint
from protocol.errors import CapaError
from sim.latency import LATENCY_CLASSES, DelayProxy, LatencyClass
from sim.processes import ChildProcess, ProcessFailed

# The node's self-test, its models and a short benchmark, on a busy two-core machine.
NODE_READY_WITHIN_S = 120.0
COORDINATOR_READY_WITHIN_S = 120.0
POLL_EVERY_S = 0.1
# How a program of ours ends on Ctrl-C, and before it has come so far as to end by itself.
_INTERRUPTED = (130, -signal.SIGINT)


class NetworkError(CapaError):
    """The local network cannot be made."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """What one node serves, asks and how far away it is. Prices are credits per million tokens,
    and per image. `program` is the module that runs, `options` what it is told besides."""

    name: str
    models: tuple[str, ...]
    input_per_mtok: str
    output_per_mtok: str
    image: str
    latency: LatencyClass
    slots: int = 8
    threads: int = 2
    program: str = "capanode"
    options: tuple[str, ...] = ()


def plan_nodes(count: int, models: Sequence[str]) -> list[NodePlan]:
    """Nodes that differ: the nearer, the dearer, so that every objective has a favourite."""
    plans = []
    for number in range(count):
        latency = LATENCY_CLASSES[number % len(LATENCY_CLASSES)]
        # 0.06, 0.04, 0.03, 0.02: the far ones are worth their distance to who wants it cheap.
        factor = ("0.06", "0.04", "0.03", "0.02")[number % len(LATENCY_CLASSES)]
        plans.append(
            NodePlan(
                name=f"node-{number + 1}",
                models=tuple(models),
                input_per_mtok=factor,
                output_per_mtok=str(round(float(factor) * 3, 4)),
                image=f"0.000{factor[2:]}",
                latency=latency,
            )
        )
    return plans


OnNodeLost = Callable[[ProcessFailed], None]


@dataclass(slots=True)
class LocalNode:
    """A node of the local network: its plan, its process, its proxies."""

    plan: NodePlan
    data_dir: Path
    process: ChildProcess
    peer_id: str


class LocalNetwork:
    """Processes and proxies below one folder. Use `open_network`."""

    def __init__(
        self,
        folder: Path,
        model_store: Path,
        nursery: trio.Nursery,
        *,
        on_node_lost: OnNodeLost | None = None,
    ) -> None:
        self.folder = folder
        self.nodes: list[LocalNode] = []
        self.endpoint: Endpoint
        self.coordinator: ChildProcess
        self._model_store = model_store
        self._nursery = nursery
        self._on_node_lost = on_node_lost
        self._logs = folder / "logs"
        self._logs.mkdir(parents=True, exist_ok=True)

    @property
    def coordinator_dir(self) -> Path:
        return self.folder / "coordinator"

    async def start_coordinator(
        self, *, http: str = "127.0.0.1:0", listener: socket.socket | None = None
    ) -> None:
        """Returns when it serves. A second call restarts it, on the same ports and books. Clients
        of a `listener`, which stays ours, can connect while no coordinator runs, and wait."""
        listen = "/ip4/127.0.0.1/tcp/0"
        old = read_endpoint(self.coordinator_dir / "endpoint.json")
        if old is not None:
            listen = old.addresses[0].partition("/p2p/")[0]
            http = old.http.removeprefix("http://")
            (self.coordinator_dir / "endpoint.json").unlink()
        if listener is not None:
            http = f"fd:{listener.fileno()}"
        self.coordinator = ChildProcess(
            "coordinator",
            "coordinator",
            [
                "start",
                f"--data-dir={self.coordinator_dir}",
                f"--listen={listen}",
                f"--http={http}",
                "--log-format=json",
            ],
            log_path=self._logs / "coordinator.log",
            descriptors=() if listener is None else (listener.fileno(),),
        )
        await self._nursery.start(self.coordinator.run)
        self.endpoint = await self._wait_endpoint()

    async def start_node(self, plan: NodePlan) -> LocalNode:
        """Returns when the process runs; `wait_serving` says when it sells."""
        data_dir = self.folder / plan.name
        made = await trio.run_process(
            [sys.executable, "-m", "capanode", "init", f"--data-dir={data_dir}", "--json"],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
        if made.returncode:
            raise NetworkError(f"cannot set up {plan.name}: {made.stderr.decode().strip()}")
        port = free_port()
        inbound_port = await self._distant(port, plan.latency)
        outbound_port = await self._distant(_port_of(self.endpoint.addresses[0]), plan.latency)
        process = ChildProcess(
            plan.name,
            plan.program,
            [
                "start",
                f"--data-dir={data_dir}",
                f"--listen=/ip4/127.0.0.1/tcp/{port}",
                f"--announce=/ip4/127.0.0.1/tcp/{inbound_port}",
                f"--coordinator=/ip4/127.0.0.1/tcp/{outbound_port}/p2p/{self.endpoint.peer_id}",
                f"--region={plan.latency.name}",
                f"--model-store={self._model_store}",
                "--log-format=json",
                *(f"--model={_model_text(plan, model)}" for model in plan.models),
                *plan.options,
            ],
            log_path=self._logs / f"{plan.name}.log",
        )
        await self._nursery.start(self._run_node, process)
        node = LocalNode(plan, data_dir, process, json.loads(made.stdout)["peer_id"])
        self.nodes.append(node)
        return node

    async def restart_node(self, node: LocalNode) -> None:
        """Run a node again that was killed: same key, ports and outbox."""
        await self._nursery.start(self._run_node, node.process)

    async def _run_node(self, process: ChildProcess, *, task_status: trio.TaskStatus[None]) -> None:
        """A node that ends by itself ends the network, unless `on_node_lost` takes note of it."""
        try:
            await process.run(task_status=task_status)
        except ProcessFailed as failed:
            if self._on_node_lost is None:
                raise
            self._on_node_lost(failed)

    async def _distant(self, port: int, latency: LatencyClass) -> int:
        """A port that leads to `port` over a distance; `port` itself if there is none."""
        if not latency.rtt_ms:
            return port
        proxy_port: int = await self._nursery.start(DelayProxy(port, latency).run)
        return proxy_port

    async def _wait_endpoint(self) -> Endpoint:
        with trio.move_on_after(COORDINATOR_READY_WITHIN_S):
            while True:
                endpoint = read_endpoint(self.coordinator_dir / "endpoint.json")
                if endpoint is not None:
                    return endpoint
                await trio.sleep(POLL_EVERY_S)
        raise NetworkError(f"the coordinator did not start:\n{self.coordinator.log_tail()}")


@asynccontextmanager
async def open_network(
    folder: Path, model_store: Path, *, on_node_lost: OnNodeLost | None = None
) -> AsyncIterator[LocalNetwork]:
    """An empty network; leaving stops nodes and coordinator in good order, all at once.

    A node that ends by itself ends the network too, unless `on_node_lost` is there to be told.
    """
    async with trio.open_nursery() as nursery:
        yield LocalNetwork(folder, model_store, nursery, on_node_lost=on_node_lost)
        nursery.cancel_scope.cancel()


def run_command(module: str, *arguments: str) -> str:
    """One command of a program, as an operator types it; returns what it prints.

    Raises NetworkError with what it complained about, or KeyboardInterrupt: a Ctrl-C reaches the
    command too, and is no failure of it.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode in _INTERRUPTED:
        raise KeyboardInterrupt
    if done.returncode:
        raise NetworkError(f"`{module} {' '.join(arguments)}` failed: {done.stderr.strip()}")
    return done.stdout


def _model_text(plan: NodePlan, model: str) -> str:
    return (
        f"{model},slots={plan.slots},threads={plan.threads},image={plan.image},"
        f"input_per_mtok={plan.input_per_mtok},output_per_mtok={plan.output_per_mtok}"
    )


def _port_of(address: str) -> int:
    return int(address.partition("/tcp/")[2].partition("/")[0])


def free_port() -> int:
    """A port that was free a moment ago; a node that loses the race says so."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
