"""How long a stream stands still when its node is killed: from the last token of the old node to
the first of the next, as an HTTP client sees it.

Two nodes with the mock engine, as real processes on loopback. Several streams run at one of them
when it is killed with SIGKILL; each goes on at the other. The mock's pace is a part of the gap.
"""

import json
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import trio

from capanode.models.store import ModelStore
from protocol.errors import CapaError
from sim.bench.mock.script import WORD, paced
from sim.chaos.model import NAME as MODEL
from sim.chaos.model import add_recital
from sim.latency import LATENCY_CLASSES
from sim.network import LocalNetwork, LocalNode, NodePlan, open_network
from sim.opening import open_buyer, wait_attached

STREAMS = 4
ROUNDS = 3
PACE_MS = 20
TOKENS = 60
WARM_UPS, WARM_UP_TOKENS = 5, 2
# The node is killed when each stream has so many.
KILL_AFTER_TOKENS = 10
_WITHIN_S = 60.0


class FailoverError(CapaError):
    """An answer that was cut is not the whole one."""


def run(rounds: int = ROUNDS) -> dict[str, float]:
    """Gaps in milliseconds, over all streams of all rounds."""
    with tempfile.TemporaryDirectory(prefix="capacloud-failover-") as folder:
        gaps_ms = trio.run(_measure, Path(folder), rounds)
    return {
        "failover_gap_ms_p50": statistics.median(gaps_ms),
        "failover_gap_ms_max": max(gaps_ms),
        "streams_cut": len(gaps_ms),
    }


async def _measure(folder: Path, rounds: int) -> list[float]:
    gaps_ms: list[float] = []
    store = (folder / "models").absolute()
    await trio.to_thread.run_sync(lambda: add_recital(ModelStore(store)))
    async with open_network(folder / "market", store) as network:
        await network.start_coordinator()
        async with trio.open_nursery() as nursery:
            for number in (1, 2):
                nursery.start_soon(network.start_node, _plan(number))
        async with _buying(network) as http:
            for node in network.nodes:
                await _earn_seats(http, node)
            for number in range(rounds):
                node = network.nodes[number % len(network.nodes)]
                gaps_ms += await _cut(http, node)
                if number + 1 < rounds:
                    await network.restart_node(node)
                    await wait_attached(network, 2)
                    await _earn_seats(http, node)
    return gaps_ms


async def _earn_seats(http: httpx.AsyncClient, node: LocalNode) -> None:
    """A node without a record gets one job at a time, and streams would wait for each other."""
    for _ in range(WARM_UPS):
        async with trio.open_nursery() as nursery:
            for _ in range(2 * STREAMS):
                nursery.start_soon(_Stream(WARM_UP_TOKENS).read, http, node.peer_id)


async def _cut(http: httpx.AsyncClient, node: LocalNode) -> list[float]:
    """Kill a node under some streams; the longest gap of each that ran there."""
    streams = [_Stream(TOKENS) for _ in range(STREAMS)]
    with trio.fail_after(_WITHIN_S):
        async with trio.open_nursery() as nursery:
            for stream in streams:
                nursery.start_soon(stream.read, http, node.peer_id)
            for stream in streams:
                await stream.is_running.wait()
            killed_at = time.perf_counter()
            await node.process.kill()
    gaps_ms = [s.gap_ms(killed_at) for s in streams if s.node == node.peer_id]
    return [gap_ms for gap_ms in gaps_ms if gap_ms is not None]


class _Stream:
    """One streamed answer, and when its tokens arrived."""

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens
        self.node = ""
        self.is_running = trio.Event()
        self._arrivals: list[float] = []
        self._text = ""

    async def read(self, http: httpx.AsyncClient, node: str) -> None:
        body = {
            "model": MODEL,
            "messages": [{"role": "user", "content": paced("Say something.", PACE_MS)}],
            "max_tokens": self._tokens,
            "stream": True,
            "provider": {"order": [node]},
        }
        async with http.stream("POST", "/v1/chat/completions", json=body) as response:
            self.node = response.headers.get("x-capacloud-node", "")
            async for line in response.aiter_lines():
                if line.startswith("data: {"):
                    self._take(json.loads(line.removeprefix("data: ")))
        if self._text != WORD * self._tokens:
            raise FailoverError(f"the answer has {len(self._text)} characters")

    def _take(self, event: dict[str, object]) -> None:
        if "error" in event:
            raise FailoverError(str(event["error"]))
        choices = event.get("choices")
        assert isinstance(choices, list)
        text = "".join(choice["delta"].get("content") or "" for choice in choices)
        if text:
            self._text += text
            self._arrivals.append(time.perf_counter())
        if len(self._arrivals) >= KILL_AFTER_TOKENS:
            self.is_running.set()

    def gap_ms(self, killed_at: float) -> float | None:
        """The longest wait for a token that ended after the kill; None if none came after it."""
        pairs = zip(self._arrivals, self._arrivals[1:], strict=False)
        gaps = [later - before for before, later in pairs if later > killed_at]
        return 1_000 * max(gaps) if gaps else None


@asynccontextmanager
async def _buying(network: LocalNetwork) -> AsyncIterator[httpx.AsyncClient]:
    key = await open_buyer(network, nodes=2)
    async with httpx.AsyncClient(
        base_url=network.endpoint.http,
        headers={"authorization": f"Bearer {key}"},
        timeout=_WITHIN_S,
    ) as http:
        yield http


def _plan(number: int) -> NodePlan:
    return NodePlan(
        name=f"node-{number}",
        models=(MODEL,),
        input_per_mtok="0.02",
        output_per_mtok="0.06",
        image="0.0001",
        latency=LATENCY_CLASSES[0],
        slots=2 * STREAMS,
        threads=1,
        program="sim.bench.mock.node",
        options=(f"--per-client-max={2 * STREAMS}",),
    )
