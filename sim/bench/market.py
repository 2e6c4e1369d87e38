"""What the market takes from an engine that has cores of its own, and what a token costs beside it.

The node runs on one half of this machine's cores, coordinator and buyer on the other half. The
share is the tokens per second that a buyer gets, by those of the same engine alone on the node's
half; both answer the same prompts in alternating rounds.

Processor time is that of coordinator and node without the worker, over whole answers: opened,
leased, streamed, signed for and settled. There the engine is a mock, which gives all its jobs a
token at each beat, as an engine's step does: a busy machine then changes no answer.
"""

import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import psutil
import trio

from capanode.engines.causal_lm import CausalLM
from capanode.models.catalog import load_catalog
from capanode.models.library import ensure
from capanode.models.store import ModelStore
from sim.bench.alone import EngineAlone, story_prompts
from sim.bench.http_buyer import HttpBuyer
from sim.bench.mock.script import on_beat
from sim.bench.overhead import DEFAULT_STORE
from sim.chaos.model import NAME as MOCK_MODEL
from sim.chaos.model import add_recital
from sim.demo import CHAT_MODEL
from sim.latency import LATENCY_CLASSES
from sim.network import LocalNetwork, NodePlan, open_network
from sim.opening import open_buyer

SLOTS = 32
_US_PER_S = 1_000_000
# Jobs at once while a new node earns its seats, as shares of the streams that follow.
_RAMP = (0.1, 0.25, 0.5, 1.0, 1.0)


@dataclass(frozen=True, slots=True)
class MarketSize:
    """How much is asked; the smaller one is for a test that the bench still runs. `shares` are
    (streams, tokens each, rounds)."""

    shares: tuple[tuple[int, int, int], ...] = ((8, 64, 2), (32, 64, 2))
    streams: int = 32
    tokens: int = 64
    rounds: int = 4
    beat_ms: int = 40


SMALL = MarketSize(shares=((8, 2, 1), (32, 2, 1)), tokens=5, rounds=1, beat_ms=10)


def run(store: Path = DEFAULT_STORE, size: MarketSize = MarketSize()) -> dict[str, float]:
    """Start both markets one after the other, measure, and stop them."""
    with tempfile.TemporaryDirectory(prefix="capacloud-bench-") as folder:
        figures = trio.run(_measure_cpu, Path(folder) / "mock", size)
        return figures | trio.run(_measure_shares, Path(folder) / "real", store.absolute(), size)


async def _measure_cpu(folder: Path, size: MarketSize) -> dict[str, float]:
    models = ModelStore(folder / "models")
    await trio.to_thread.run_sync(add_recital, models)
    plan = replace(_plan(MOCK_MODEL, 1), program="sim.bench.mock.node")
    async with _market(folder, folder / "models", plan) as (network, buyer):
        prompts = [on_beat("Say words.", size.beat_ms)] * size.streams
        await _warm_up(buyer, prompts)
        processes = {
            "coordinator": psutil.Process(network.coordinator.pid),
            "node": psutil.Process(network.nodes[0].process.pid),
        }
        used_us: dict[str, list[float]] = {name: [] for name in processes}
        for _ in range(size.rounds):
            before_s = {name: _cpu_s(process) for name, process in processes.items()}
            answers = await buyer.stream_many(prompts, size.tokens, size.streams)
            tokens = sum(answer.tokens for answer in answers)
            for name, process in processes.items():
                used_us[name].append(_US_PER_S * (_cpu_s(process) - before_s[name]) / tokens)
    figures = {
        f"cpu_us_per_token_{name}_{size.streams}": statistics.median(values)
        for name, values in used_us.items()
    }
    return {f"market_cpu_us_per_token_{size.streams}": sum(figures.values()), **figures}


async def _measure_shares(folder: Path, store: Path, size: MarketSize) -> dict[str, float]:
    node_cores, other_cores = _halves()
    model = ensure(ModelStore(store), load_catalog(), CHAT_MODEL)
    alone = EngineAlone(CausalLM.load(model.path, slots=SLOTS, threads=len(node_cores)))
    figures: dict[str, float] = {}
    plan = _plan(CHAT_MODEL, len(node_cores))
    async with _market(folder, store, plan) as (network, buyer):
        _pin(psutil.Process(network.nodes[0].process.pid), node_cores)
        _pin(psutil.Process(network.coordinator.pid), other_cores)
        prompts = story_prompts()
        most = max(streams for streams, _, _ in size.shares)
        await _warm_up(buyer, list(islice(prompts, most)))
        for streams, tokens, rounds in size.shares:
            shares = []
            for number in range(rounds + 1):
                asked = list(islice(prompts, streams))
                _pin(psutil.Process(), node_cores)
                alone_tps = alone.answer(asked, tokens).tokens_per_s
                _pin(psutil.Process(), other_cores)
                ours_tps = await _tokens_per_s(buyer, asked, tokens)
                if number:  # The first round warms both sides up.
                    shares.append(ours_tps / alone_tps)
            figures[f"market_share_{streams}"] = statistics.median(shares)
    return figures


@asynccontextmanager
async def _market(
    folder: Path, store: Path, plan: NodePlan
) -> AsyncIterator[tuple[LocalNetwork, HttpBuyer]]:
    """A coordinator and one node that serves, and a buyer with credit."""
    async with open_network(folder, store) as network:
        await network.start_coordinator()
        await network.start_node(plan)
        key = await open_buyer(network, nodes=1)
        async with HttpBuyer(network.endpoint.http, key, plan.models[0]) as buyer:
            yield network, buyer


def _plan(model: str, threads: int) -> NodePlan:
    return NodePlan(
        name="node-1",
        models=(model,),
        input_per_mtok="0.02",
        output_per_mtok="0.06",
        image="0.0001",
        latency=LATENCY_CLASSES[0],
        slots=SLOTS,
        threads=threads,
        options=(f"--per-client-max={SLOTS}",),
    )


async def _warm_up(buyer: HttpBuyer, prompts: list[str]) -> None:
    """Connections and caches, and the node's record: a new one gets few jobs at once."""
    for share in _RAMP:
        at_once = max(1, round(share * len(prompts)))
        await buyer.stream_many(prompts[:at_once], 2, at_once)


async def _tokens_per_s(buyer: HttpBuyer, prompts: list[str], tokens: int) -> float:
    began_s = time.perf_counter()
    answers = await buyer.stream_many(prompts, tokens, len(prompts))
    return sum(answer.tokens for answer in answers) / (time.perf_counter() - began_s)


def _cpu_s(process: psutil.Process) -> float:
    spent = process.cpu_times()
    return float(spent.user + spent.system)


def _halves() -> tuple[set[int], set[int]]:
    """The node's cores and the others'; both the same where there is one only."""
    cores = sorted(os.sched_getaffinity(0))
    half = (len(cores) + 1) // 2
    return set(cores[:half]), set(cores[half:] or cores)


def _pin(process: psutil.Process, cores: set[int]) -> None:
    """Let a process and all below it run on these cores alone."""
    for each in (process, *process.children(recursive=True)):
        for thread in each.threads():
            os.sched_setaffinity(thread.id, cores)
