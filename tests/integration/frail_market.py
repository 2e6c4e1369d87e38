"""A market on real processes whose parts may be killed, frozen and brought back by tests.

The network lives in a thread with a trio of its own, so that plain and async tests can share it: a
node takes many seconds to start, and most faults leave it running.
"""

import os
import signal
import sqlite3
import threading
import time
from collections.abc import Awaitable, Callable, Container, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import trio

from coordinator.cli.market_session import MarketSession, open_market
from coordinator.settings import CoordinatorConfig
from protocol.offers import NodeOffer
from protocol.services import NodesAsk, NodeSummary
from sim.demo import CHAT_MODEL, open_account, wait_nodes
from sim.latency import LATENCY_CLASSES
from sim.network import LocalNetwork, LocalNode, NodePlan, free_port, open_network
from tests.integration.conftest import RunningMarket

R = TypeVar("R")

SOON_S = 60.0
POLL_EVERY_S = 0.1
# With four slots a fifth job queues; with one thread two nodes do not starve each other.
SLOTS = 4
CHAT = CHAT_MODEL


@dataclass(frozen=True)
class OpenHold:
    """A lease whose money is held: by the books, at this moment."""

    lease_id: str
    job_id: str
    node: str
    expires_at_ms: int


class FrailMarket:
    """What tests act on; `market` is how its users and its operator see it."""

    def __init__(
        self,
        network: LocalNetwork,
        session: MarketSession,
        token: trio.lowlevel.TrioToken,
        api_key: str,
        grpc_address: str,
    ) -> None:
        self.network = network
        self.session = session
        self.token = token
        self.grpc_address = grpc_address
        endpoint = network.endpoint
        self.market = RunningMarket(
            endpoint.http, api_key, endpoint.addresses[0], str(network.coordinator_dir), {}
        )

    def call(self, function: Callable[..., Awaitable[R]], *arguments: Any) -> R:
        """Run an async function where the network lives."""

        async def bounded() -> R:
            with trio.fail_after(SOON_S):
                return await function(*arguments)

        return trio.from_thread.run(bounded, trio_token=self.token)

    @property
    def nodes(self) -> list[LocalNode]:
        return self.network.nodes[:2]

    def client(self) -> httpx.Client:
        return self.market.client()

    # What is going on.

    def summaries(self) -> dict[str, NodeSummary]:
        page = self.call(self.session.leaser.nodes, NodesAsk())
        return {summary.node: summary for summary in page.nodes}

    def wait_healthy(self) -> None:
        """Both nodes attached, near, trusted and with a model that runs."""
        ids = {node.peer_id for node in self.nodes}

        def is_healthy(summary: NodeSummary) -> bool:
            return summary.attached and summary.rtt_ms is not None

        self.wait(lambda: ids <= {n for n, s in self.summaries().items() if is_healthy(s)})

    def wait(self, condition: Callable[[], bool], *, within_s: float = SOON_S) -> None:
        deadline_s = time.monotonic() + within_s
        while not condition():
            assert time.monotonic() < deadline_s, f"not within {within_s:g} s: {self.tails()}"
            time.sleep(POLL_EVERY_S)

    def tails(self) -> str:
        processes = [self.network.coordinator, *(node.process for node in self.network.nodes)]
        return "\n".join(f"--- {child.name}\n{child.log_tail()}" for child in processes)

    def log_of(self, node: LocalNode | None = None) -> str:
        child = self.network.coordinator if node is None else node.process
        return child.log_path.read_text(errors="replace")

    def rows(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Ask the books directly: what is durable, whatever the processes say."""
        uri = f"file:{self.network.coordinator_dir / 'books.sqlite'}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=5)) as books:
            return books.execute(query, values).fetchall()

    def open_holds(self, *, but: Container[OpenHold] = ()) -> list[OpenHold]:
        """`but` are those that earlier faults have left."""
        query = "SELECT lease_id, job_id, node, expires_at_ms FROM leases WHERE state = 'open'"
        found = [OpenHold(*row) for row in self.rows(query)]
        return [hold for hold in found if hold not in but]

    def worker_of(self, node: LocalNode) -> psutil.Process:
        """The process in the sandbox that runs the model: the innermost of its kind."""
        inside = [
            process
            for process in psutil.Process(node.process.pid).children(recursive=True)
            if "capanode.worker.main" in " ".join(process.cmdline())
        ]
        assert inside, f"{node.plan.name} has no worker"
        return next(process for process in inside if not process.children())

    def assert_sound(self) -> None:
        """The books are right, and nobody has shown the world or the log a stack trace."""
        self.market.audit()
        assert "Traceback" not in self.log_of(), self.network.coordinator.log_tail()
        for node in self.nodes:
            assert "Traceback" not in self.log_of(node), node.process.log_tail()

    # What tests do to it.

    def kill(self, node: LocalNode) -> None:
        self.call(node.process.kill)

    def restart(self, node: LocalNode) -> None:
        self.call(self.network.restart_node, node)

    def mend(self) -> None:
        """Bring back what a test has left dead or frozen, so that the next test finds a market."""
        processes = [self.network.coordinator, *(node.process for node in self.nodes)]
        for child in processes:
            if child.is_running:
                os.kill(child.pid, signal.SIGCONT)
        if all(child.is_running for child in processes):
            return
        if not self.network.coordinator.is_running:
            self.call(self.network.start_coordinator)
        for node in self.nodes:
            if not node.process.is_running:
                self.restart(node)
        self.wait_healthy()

    @contextmanager
    def frozen(self, node: LocalNode) -> Iterator[None]:
        """The node's process stands still: its sockets take bytes that nobody reads."""
        os.kill(node.process.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            if psutil.pid_exists(node.process.pid):
                os.kill(node.process.pid, signal.SIGCONT)


def order_of(*nodes: LocalNode, **changes: Any) -> dict[str, Any]:
    """The `provider` object of a request: these nodes, in this order of preference."""
    return {"order": [node.peer_id for node in nodes]} | changes


def only(node: LocalNode) -> dict[str, Any]:
    return {"only": [node.peer_id]}


def chat_body(**changes: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "Tell me a long story."}]
    return {
        "model": CHAT,
        "messages": messages,
        "max_tokens": 8,
        "temperature": 0,
    } | changes


def plan(name: str, price: str, model: str = CHAT) -> NodePlan:
    return NodePlan(
        name=name,
        models=(model,),
        input_per_mtok=price,
        output_per_mtok=price,
        image="0.0001",
        latency=LATENCY_CLASSES[0],
        slots=SLOTS,
        threads=1,
    )


@contextmanager
def open_frail_market(
    folder: Path, model_store: Path, *, model: str = CHAT
) -> Iterator[FrailMarket]:
    """Two nodes with one model; leaving stops everything and raises what went wrong."""
    ready: list[FrailMarket] = []
    failures: list[BaseException] = []
    is_up, leave = threading.Event(), trio.Event()

    async def live() -> None:
        async with open_network(folder, model_store) as network:
            grpc_address = f"127.0.0.1:{free_port()}"
            network.coordinator_dir.mkdir(parents=True)
            (network.coordinator_dir / "coordinator.toml").write_text(f'grpc = "{grpc_address}"\n')
            await network.start_coordinator()
            async with trio.open_nursery() as starting:
                for name, price in (("node-1", "0.02"), ("node-2", "0.03")):
                    starting.start_soon(network.start_node, plan(name, price, model))
            network.nodes.sort(key=lambda node: node.plan.name)
            api_key = await open_account(network)
            config = CoordinatorConfig.resolve(flags={"data_dir": network.coordinator_dir})
            async with open_market(config, at=None, key_path=None) as session:
                await wait_nodes(session, 2, _ignore)
                token = trio.lowlevel.current_trio_token()
                ready.append(FrailMarket(network, session, token, api_key, grpc_address))
                is_up.set()
                await leave.wait()

    def run() -> None:
        try:
            trio.run(live)
        except BaseException as error:  # Told to the test's thread, which raises it.
            failures.append(error)
        finally:
            is_up.set()

    thread = threading.Thread(target=run, name="frail market")
    thread.start()
    is_up.wait()
    try:
        if not failures:
            yield ready[0]
    finally:
        if not failures:
            trio.from_thread.run_sync(leave.set, trio_token=ready[0].token)
        thread.join()
    if failures:
        raise failures[0]


def _ignore(offer: NodeOffer, rtt_ms: float | None) -> None:
    """Who joins is of no interest here."""
