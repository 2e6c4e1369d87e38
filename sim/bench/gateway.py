"""What our gateway and market add to an answer, beside what other gateways add to the same mock.

Ours is not only a proxy: every request is signed, matched, leased with durable money, run in a
sandboxed process over libp2p, metered and settled. All doors are asked in short rounds, one after
the other in one run, so that a noisy moment hits all; a target compares figures of one run.

New nodes of ours earn their seats by the answers that they give, as in production. Before the
streams that are all open at once, a ramp of short jobs lets nodes show that they can do so many.
"""

import statistics
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from sim.bench.edges import open_edges
from sim.bench.gateways import (
    GatewayUnderTest,
    open_litellm,
    open_mock,
    open_ours,
    open_vllm_router,
)
from sim.bench.http_buyer import BuyerError, HttpBuyer, TimedAnswer
from sim.bench.mock.script import paced

_US_PER_S = 1_000_000
# What the kernel counts a process in.
_TICK_S = 0.01
# Jobs at once while nodes earn seats, as shares of the streams that follow, and how often.
_RAMP_SHARES = (0.1, 0.25, 0.5, 1.0)
_RAMP_ROUNDS = 2
KIB = 1_024


@dataclass(frozen=True, slots=True)
class BenchSize:
    """How much is asked; the smaller one is for a test that the bench still runs."""

    rounds: int = 6
    alone_requests: int = 40
    many: tuple[tuple[int, int], ...] = ((16, 160), (64, 320))
    load_requests: int = 1_000
    load_streams: int = 32
    paced_streams: int = 64
    paced_tokens: int = 100
    open_streams: int = 1_000
    long_prompts: int = 200
    long_prompt_bytes: int = 220 * KIB


SMALL = BenchSize(
    rounds=1,
    alone_requests=3,
    many=((4, 8),),
    load_requests=16,
    load_streams=4,
    paced_streams=4,
    paced_tokens=5,
    open_streams=8,
    long_prompts=2,
)


def run(size: BenchSize = BenchSize()) -> dict[str, float]:
    """Start every door, measure, and stop them."""
    with tempfile.TemporaryDirectory(prefix="capacloud-bench-") as folder:
        return trio.run(_measure, Path(folder), size)


async def _measure(folder: Path, size: BenchSize) -> dict[str, float]:
    async with _open_doors(folder) as doors:
        bench = _Bench(doors, size)
        async with open_edges(folder, doors["ours"]) as edges:
            alone = doors | {edge.name: edge for edge in edges}
            await bench.warm_up(alone)
            figures = await bench.alone(alone)
        for connections, requests in size.many:
            figures |= await bench.together(connections, requests)
        figures |= await bench.long_prompts()
        figures |= await bench.load()
        figures |= await bench.chunks()
        return figures | await bench.open_streams()


@asynccontextmanager
async def _open_doors(folder: Path) -> AsyncIterator[dict[str, GatewayUnderTest]]:
    async with AsyncExitStack() as stack:
        mock = await stack.enter_async_context(open_mock(folder))
        found = [
            mock,
            await stack.enter_async_context(open_litellm(folder, mock.url)),
            await stack.enter_async_context(open_vllm_router(folder, mock.url)),
            await stack.enter_async_context(open_ours(folder)),
        ]
        yield {door.name: door for door in found if door is not None}


@dataclass(slots=True)
class _Bench:
    doors: dict[str, GatewayUnderTest]
    size: BenchSize

    async def warm_up(self, doors: Mapping[str, GatewayUnderTest]) -> None:
        """Connections, caches and just-in-time code: not what is measured."""
        for door in doors.values():
            await _ask(door, ["hello"] * 10, tokens=2, connections=2)

    async def alone(self, doors: Mapping[str, GatewayUnderTest]) -> dict[str, float]:
        """Time to first token on one connection, and what each door adds to the mock's."""
        found = await self._rounds(1, self.size.alone_requests, doors)
        p50_ms = {name: statistics.median(times) for name, times in found.items()}
        figures = {f"ttft_ms_p50_{name}": value for name, value in p50_ms.items()}
        for name, value in p50_ms.items():
            if name != "mock":
                figures[f"added_ms_p50{_suffix(name)}"] = value - p50_ms["mock"]
        figures["pool_added_ms_p50"] = figures.pop("added_ms_p50_pool")
        if "litellm" in p50_ms:
            added = figures["added_ms_p50"]
            figures["litellm_ratio_added"] = figures["added_ms_p50_litellm"] / added
        return figures

    async def together(self, connections: int, requests: int) -> dict[str, float]:
        """The same over many connections: the slowest in a hundred."""
        found = await self._rounds(connections, requests, self.doors)
        p99_ms = {name: _p99(times) for name, times in found.items()}
        return {
            f"added_ms_p99_{connections}{_suffix(name)}": value - p99_ms["mock"]
            for name, value in p99_ms.items()
            if name != "mock"
        }

    async def _rounds(
        self, connections: int, requests: int, doors: Mapping[str, GatewayUnderTest]
    ) -> dict[str, list[float]]:
        """Times to first token in milliseconds, by door."""
        found: dict[str, list[float]] = {name: [] for name in doors}
        for _ in range(self.size.rounds):
            for name, door in doors.items():
                each = ["Say a word."] * max(1, requests // self.size.rounds)
                answers = await _ask(door, each, tokens=2, connections=connections)
                found[name] += [1_000 * answer.first_s for answer in answers]
        return found

    async def long_prompts(self) -> dict[str, float]:
        """Large prompts, all at once."""
        count = self.size.long_prompts
        prompt = "word " * (self.size.long_prompt_bytes // 5)
        p50_ms: dict[str, float] = {}
        for name, door in self.doors.items():
            answers = await _ask(door, [prompt] * count, tokens=2, connections=count)
            p50_ms[name] = 1_000 * statistics.median(answer.first_s for answer in answers)
        return {
            f"long_prompt_added_ms_p50{_suffix(name)}": value - p50_ms["mock"]
            for name, value in p50_ms.items()
            if name != "mock"
        }

    async def load(self) -> dict[str, float]:
        """Whole requests of one token, as many as a door takes: per second of its processors."""
        per_core: dict[str, float] = {}
        for name, door in self.doors.items():
            count, streams = self.size.load_requests, self.size.load_streams
            before_s = door.cpu_s()
            await _ask(door, ["Say a word."] * count, tokens=1, connections=streams)
            per_core[name] = count / max(door.cpu_s() - before_s, _TICK_S)
        figures = {f"requests_per_core_s_{name}": value for name, value in per_core.items()}
        figures["jobs_per_core_s"] = per_core["ours"]
        if "litellm" in per_core:
            figures["litellm_ratio_rps"] = per_core["ours"] / per_core["litellm"]
        return figures

    async def chunks(self) -> dict[str, float]:
        """Processor time to relay one chunk of a paced stream, over all of a door's processes."""
        figures = {}
        for name, door in self.doors.items():
            streams, tokens = self.size.paced_streams, self.size.paced_tokens
            prompts = [paced("Say words.", 20)] * streams
            before_s = door.cpu_s()
            await _ask(door, prompts, tokens=tokens, connections=streams)
            used_us = _US_PER_S * (door.cpu_s() - before_s) / (streams * tokens)
            figures[f"chunk_cpu_us{_suffix(name)}"] = used_us
        return figures

    async def open_streams(self) -> dict[str, float]:
        """Slow streams that are all open at once, and the memory that each takes of our door."""
        door, count = self.doors["ours"], self.size.open_streams
        prompts = [paced("Say words.", 1_000)] * count
        before = door.memory_bytes()
        await self._earn_seats()
        most = before
        done = trio.Event()

        async def watch() -> None:
            nonlocal most
            while not done.is_set():
                most = max(most, door.memory_bytes())
                await trio.sleep(0.5)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            answers = await _ask(door, prompts, tokens=20, connections=count, is_strict=False)
            done.set()
        gaps_ms = [1_000 * (each.total_s - each.first_s) / max(each.tokens, 1) for each in answers]
        return {
            "streams_ok": sum(answer.tokens == 20 for answer in answers),
            "stream_memory_kb": (most - before) / KIB / count,
            # The mock makes a token each second, the first one at once.
            "stream_token_ms_p99": _p99(gaps_ms),
        }

    async def _earn_seats(self) -> None:
        """Our nodes answer ever more jobs at once, up to as many as there will be streams."""
        for share in _RAMP_SHARES:
            at_once = max(1, round(share * self.size.open_streams))
            prompts = ["hello"] * (_RAMP_ROUNDS * at_once)
            await _ask(self.doors["ours"], prompts, tokens=2, connections=at_once)


async def _ask(
    door: GatewayUnderTest,
    prompts: list[str],
    *,
    tokens: int,
    connections: int,
    is_strict: bool = True,
) -> list[TimedAnswer]:
    """All answers; without `is_strict` those that came."""
    answers: list[TimedAnswer] = []
    waiting = list(prompts)

    async def ask_next(buyer: HttpBuyer) -> None:
        while waiting:
            try:
                answers.append(await buyer.stream(waiting.pop(), tokens))
            except BuyerError:
                if is_strict:
                    raise

    async with HttpBuyer(door.url, door.key, door.model) as buyer, trio.open_nursery() as nursery:
        for _ in range(connections):
            nursery.start_soon(ask_next, buyer)
    return answers


def _suffix(name: str) -> str:
    """Our own figures have the plain names."""
    return "" if name == "ours" else f"_{name}"


def _p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]
