"""What the market costs: gateway → lease → libp2p → sandbox, against the same engine in-process.

Both sides answer the same prompts with the same model, slots and threads, one after the other in
small alternating rounds, so that a noisy moment hits both. The buyer on our side is a real HTTP
client on a loopback socket; its own work counts against us, as it would for any user.
"""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import trio

from capanode.engines.base import Engine
from capanode.engines.causal_lm import CausalLM
from capanode.models.catalog import load_catalog
from capanode.models.library import ensure
from capanode.models.store import ModelStore
from sim.bench.alone import EngineAlone, story_prompts
from sim.bench.http_buyer import HttpBuyer
from sim.demo import CHAT_MODEL
from sim.latency import LATENCY_CLASSES
from sim.network import LocalNetwork, NodePlan, open_network
from sim.opening import open_buyer

DEFAULT_STORE = Path(".capacloud/models")
SLOTS = 32
THREADS = 2
# A pair of requests takes a tenth of a second. With so few, the p99 is the slowest one's word.
FIRST_TOKEN_PAIRS = 50
FIRST_TOKEN_TOKENS = 2
# (streams, tokens each, rounds): as many as fit into the minute.
THROUGHPUT = ((1, 32, 2), (8, 64, 3), (32, 64, 2))
GROWTH_WARM_UP_JOBS = 200
GROWTH_JOBS = 1_000
GROWTH_STREAMS = 32
MB = 1_000_000


def run(store: Path = DEFAULT_STORE) -> dict[str, float]:
    """Start a coordinator and one node, measure, and stop them."""
    models = ModelStore(store)
    model = ensure(models, load_catalog(), CHAT_MODEL)
    engine = CausalLM.load(model.path, slots=SLOTS, threads=THREADS)
    with tempfile.TemporaryDirectory(prefix="capacloud-bench-") as folder:
        return trio.run(_measure, engine, Path(folder), store.absolute())


async def _measure(engine: Engine, folder: Path, store: Path) -> dict[str, float]:
    plan = NodePlan(
        "node-1",
        (CHAT_MODEL,),
        input_per_mtok="0.02",
        output_per_mtok="0.06",
        image="0.0001",
        latency=LATENCY_CLASSES[0],
        slots=SLOTS,
        threads=THREADS,
    )
    async with open_network(folder, store) as network:
        await network.start_coordinator()
        await network.start_node(plan)
        key = await open_buyer(network, nodes=1)
        async with HttpBuyer(network.endpoint.http, key, CHAT_MODEL) as buyer:
            return await _Bench(EngineAlone(engine), buyer, network).all_figures()


@dataclass(slots=True)
class _Bench:
    engine: EngineAlone
    buyer: HttpBuyer
    network: LocalNetwork

    async def all_figures(self) -> dict[str, float]:
        figures = self.idle_memory()
        prompts = story_prompts()
        await self.warm_up(prompts)
        figures |= await self.first_tokens(prompts)
        for streams, tokens, rounds in THROUGHPUT:
            figures |= await self.throughput(prompts, streams, tokens, rounds)
        return figures | await self.growth()

    def processes(self) -> dict[str, psutil.Process]:
        """Coordinator, node parent and worker, and this process with the HTTP client."""
        node = psutil.Process(self.network.nodes[0].process.pid)
        # Between node and worker stand the sandbox's own small processes.
        worker = max(node.children(recursive=True), key=lambda child: child.memory_info().rss)
        coordinator = psutil.Process(self.network.coordinator.pid)
        return {"coordinator": coordinator, "node": node, "worker": worker}

    def idle_memory(self) -> dict[str, float]:
        return {
            f"rss_{name}_mb": process.memory_info().rss / MB
            for name, process in self.processes().items()
        }

    async def warm_up(self, prompts: Iterator[str]) -> None:
        """Connections, caches of statements and kernels: not what is measured."""
        for _ in range(5):
            prompt = next(prompts)
            self.engine.answer([prompt], 4)
            await self.buyer.stream(prompt, 4)

    async def first_tokens(self, prompts: Iterator[str]) -> dict[str, float]:
        ours_ms, alone_ms = [], []
        for _ in range(FIRST_TOKEN_PAIRS):
            prompt = next(prompts)
            alone_ms.append(1_000 * self.engine.answer([prompt], FIRST_TOKEN_TOKENS).first_s[0])
            ours_ms.append(1_000 * (await self.buyer.stream(prompt, FIRST_TOKEN_TOKENS)).first_s)
        return {
            "ttft_ms_p50": statistics.median(ours_ms),
            "ttft_in_process_ms_p50": statistics.median(alone_ms),
            "added_ttft_ms_p50": statistics.median(ours_ms) - statistics.median(alone_ms),
            "added_ttft_ms_p99": _p99(ours_ms) - _p99(alone_ms),
        }

    async def throughput(
        self, prompts: Iterator[str], streams: int, tokens: int, rounds: int
    ) -> dict[str, float]:
        """The median over rounds of each side's tokens per second, and processor time per token."""
        ours, alone = [], []
        cpu_before = self._cpu_s()
        ours_tokens = 0
        for _ in range(rounds):
            asked = list(itertools.islice(prompts, streams))
            alone.append(self.engine.answer(asked, tokens).tokens_per_s)
            began_s = time.perf_counter()
            answers = await self.buyer.stream_many(asked, tokens, streams)
            took_s = time.perf_counter() - began_s
            count = sum(answer.tokens for answer in answers)
            ours_tokens += count
            ours.append(count / took_s)
        figures = {
            f"tokens_per_s_{streams}": statistics.median(ours),
            f"tokens_per_s_in_process_{streams}": statistics.median(alone),
            f"throughput_ratio_{streams}": statistics.median(ours) / statistics.median(alone),
        }
        for name, cpu_s in self._cpu_s().items():
            used_us = 1_000_000 * (cpu_s - cpu_before[name]) / ours_tokens
            figures[f"cpu_us_per_token_{name}_{streams}"] = used_us
        return figures

    async def growth(self) -> dict[str, float]:
        """Resident memory that a thousand jobs leave behind."""
        await self._many_jobs(GROWTH_WARM_UP_JOBS)
        before = {name: p.memory_info().rss for name, p in self.processes().items()}
        began_s = time.perf_counter()
        await self._many_jobs(GROWTH_JOBS)
        jobs_per_s = GROWTH_JOBS / (time.perf_counter() - began_s)
        grown = {
            f"rss_grown_{name}_mb": (process.memory_info().rss - before[name]) / MB
            for name, process in self.processes().items()
        }
        return {"jobs_per_s": jobs_per_s, **grown}

    async def _many_jobs(self, count: int) -> None:
        """The smallest that are whole jobs: leased, run, signed for and settled."""
        await self.buyer.complete_many([f"{n}" for n in range(count)], GROWTH_STREAMS)

    def _cpu_s(self) -> dict[str, float]:
        times = {name: process.cpu_times() for name, process in self.processes().items()}
        return {name: spent.user + spent.system for name, spent in times.items()}


def _p99(values: list[float]) -> float:
    """Of what was measured: not extrapolated past the slowest."""
    return statistics.quantiles(values, n=100, method="inclusive")[98]
