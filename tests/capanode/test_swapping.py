"""A node with more models than its memory holds, in virtual time: its workers take a while to load,
and count what is in memory at once."""

import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from capanode.benchmark import SpeedCache
from capanode.engines.base import EngineInfo
from capanode.errors import NodeError
from capanode.load_cache import LoadCache
from capanode.residency import REST_S, Footprint
from capanode.status import Rates, read_status
from capanode.swapping import TRY_AGAIN_AFTER_S
from capanode.worker.jobs import WorkerState
from capanode.workers import ModelPlan
from protocol.client_session import ClientJob, Ended, Refused
from protocol.codec import encode
from protocol.errors import Code
from protocol.generation import GenerationInput
from protocol.limits import LOAD_MS_MAX, OFFER_INTERVAL_MIN_MS
from protocol.net.channels import Channel
from protocol.offers import ModelOffer
from tests.capanode.fakes import STEP_S, FakeWorker
from tests.capanode.test_node import FakePool, World, make_plan, open_world

LOAD_S = 4.0
GIB = 1024**3
# Longer than a model rests after its load or its job, and than an offer takes to be renewed.
CALM_S = LOAD_S + REST_S + OFFER_INTERVAL_MIN_MS / 1_000 + 1


class LoadingWorker(FakeWorker):
    """Takes `load_s` to be ready; is in `pool.live` for as long as it takes memory."""

    def __init__(self, pool: "LoadingPool", plan: ModelPlan) -> None:
        super().__init__(slots=plan.slots)
        self.state = WorkerState.STARTING
        self._pool = pool
        self._name = plan.name

    async def run(
        self, *, task_status: trio.TaskStatus[EngineInfo] = trio.TASK_STATUS_IGNORED
    ) -> None:
        pool = self._pool
        pool.live.append(self._name)
        pool.loads.append(self._name)
        pool.most_live = max(pool.most_live, len(pool.live))
        try:
            await trio.sleep(pool.load_s)
            if self._name in pool.broken_now:
                raise NodeError("the card is full")
            self.state = WorkerState.READY
            await super().run(task_status=task_status)
        finally:
            pool.live.remove(self._name)


class LoadingPool(FakePool):
    def __init__(self) -> None:
        super().__init__()
        self.load_s = LOAD_S
        self.broken_now: set[str] = set()
        self.live: list[str] = []
        self.loads: list[str] = []
        self.most_live = 0

    def worker(self, plan: ModelPlan, *, on_state: Callable[[WorkerState], None]) -> FakeWorker:
        worker = self.workers[plan.name] = LoadingWorker(self, plan)
        self.on_state[plan.name] = on_state
        return worker


def plans_of(*names: str, hot: int = 1) -> list[ModelPlan]:
    """The first `hot` are loaded at the start; each takes a GiB."""
    return [
        replace(make_plan(name), footprint=Footprint("card", GIB), is_cold=number >= hot)
        for number, name in enumerate(names)
    ]


@asynccontextmanager
async def open_shared(
    *names: str, hot: int = 1, loads: LoadCache | None = None, speeds: SpeedCache | None = None
) -> AsyncIterator[tuple[World, LoadingPool]]:
    """A node whose memory holds `hot` of its models, calm after its start."""
    pool = LoadingPool()
    async with open_world(
        pool=pool,
        plans=plans_of(*names, hot=hot),
        room={"card": hot * GIB},
        loads=loads,
        speeds=speeds,
    ) as world:
        await trio.sleep(CALM_S)
        yield world, pool
        assert pool.most_live <= hot


def offered(world: World) -> dict[str, ModelOffer]:
    return {model.name: model for model in world.coordinator.attached[-1].message.models}


def load_ms(world: World) -> dict[str, int]:
    return {name: model.load_ms for name, model in offered(world).items()}


async def begin(world: World, name: str, tokens: int = 5) -> tuple[ClientJob, Channel]:
    payload = encode(GenerationInput(max_tokens=tokens, prompt="hello"))
    return await world.open_job(*world.grant(payload, name=name), payload=payload)


async def run(world: World, name: str, tokens: int = 5) -> Ended | Refused:
    return await world.finish_job(await begin(world, name, tokens))


def is_full(world: World, name: str) -> bool:
    digest = offered(world)[name].manifest_digest
    load = next(m for m in world.coordinator.loads[-1].models if m.manifest_digest == digest)
    model = world.node.models[digest]
    seats = model.seats.slots + model.seats.queue_max
    return load.available and load.running + load.queued >= seats


async def test_a_cold_model_is_measured_unloaded_and_offered_with_its_load_time(
    autojump_clock: MockClock,
) -> None:
    async with open_shared("a", "b") as (world, pool):
        assert load_ms(world) == {"a": 0, "b": LOAD_S * 1_000}
        assert offered(world)["b"].decode_tps == offered(world)["a"].decode_tps > 0
        assert (pool.loads, pool.live) == (["b", "a"], ["a"])


async def test_what_an_earlier_run_has_measured_is_not_loaded_to_be_offered(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    path, speeds = tmp_path / "load_times.json", SpeedCache(None)
    async with open_shared("a", "b", loads=LoadCache(path), speeds=speeds) as (world, _):
        before = offered(world)["b"]
    async with open_shared("a", "b", loads=LoadCache(path), speeds=speeds) as (world, pool):
        assert pool.loads == ["a"]
        assert offered(world)["b"] == before
    path.write_text('{"damaged": 1}')
    async with open_shared("a", "b", loads=LoadCache(path), speeds=speeds) as (_, pool):
        assert pool.loads == ["b", "a"]


async def test_a_job_loads_its_model_in_place_of_the_one_that_is_idle(
    autojump_clock: MockClock,
) -> None:
    async with open_shared("a", "b") as (world, pool):
        began_at = trio.current_time()
        ended = await run(world, "b")
        assert isinstance(ended, Ended)
        assert ended.agrees
        assert LOAD_S <= trio.current_time() - began_at < LOAD_S + 1
        assert pool.live == ["b"]
        await trio.sleep(OFFER_INTERVAL_MIN_MS / 1_000 + 1)
        assert load_ms(world) == {"a": LOAD_S * 1_000, "b": 0}
        await trio.sleep(CALM_S)
        assert isinstance(await run(world, "a"), Ended)
        assert pool.live == ["a"]
        swaps = [m.facts for m in world.milestones if m.name == "model_swapped"]
        assert [(one["model"], one["evicted"]) for one in swaps] == [("b", ["a"]), ("a", ["b"])]


async def test_the_least_recently_used_of_several_gives_way(autojump_clock: MockClock) -> None:
    async with open_shared("a", "b", "c", hot=2) as (world, pool):
        for name in ("b", "a"):
            await run(world, name)
        await trio.sleep(CALM_S)
        await run(world, "c")
        assert sorted(pool.live) == ["a", "c"]


async def test_jobs_wait_together_for_one_load(autojump_clock: MockClock) -> None:
    async with open_shared("a", "b") as (world, pool):
        ends: list[Ended | Refused] = []

        async def one() -> None:
            ends.append(await run(world, "b"))

        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(one)
        assert all(isinstance(end, Ended) for end in ends)
        assert pool.loads.count("b") == 2, "at the start, and once for all of them"


async def test_while_every_model_has_a_job_a_cold_one_is_full_and_refused(
    autojump_clock: MockClock,
) -> None:
    async with open_shared("a", "b") as (world, pool):
        assert not is_full(world, "b")
        opened = await begin(world, "a", tokens=50)
        await trio.sleep(40 * STEP_S)
        assert is_full(world, "b")
        refused = await run(world, "b")
        assert isinstance(refused, Refused)
        assert refused.code is Code.BUSY
        assert refused.retry_after_ms
        assert isinstance(await world.finish_job(opened), Ended)
        assert pool.live == ["a"]
        await trio.sleep(REST_S / 2)
        assert is_full(world, "b"), "the next job of the same client comes soon"
        await trio.sleep(REST_S)
        assert not is_full(world, "b")
        assert isinstance(await run(world, "b"), Ended)


async def test_a_lease_without_a_job_costs_no_model_its_place(autojump_clock: MockClock) -> None:
    async with open_shared("a", "b") as (world, pool):
        payload = encode(GenerationInput(max_tokens=5, prompt="hello"))
        world.grant(payload, name="b")
        await world.jobs.open_channel(
            world.node.key.peer_id, addresses=world.node.transport.addresses, timeout_s=5
        )
        await trio.sleep(60)
        assert pool.live == ["a"]


async def test_a_lease_from_before_a_swap_is_refused_if_its_client_would_not_wait(
    autojump_clock: MockClock,
) -> None:
    async with open_shared("a", "b") as (world, _):
        before = world.coordinator.attached[-1]
        await run(world, "b")
        await trio.sleep(CALM_S)
        payload = encode(GenerationInput(max_tokens=5, prompt="hello"))
        request, lease = world.grant(payload, name="a", offer=before)
        refused = await world.finish_job(await world.open_job(request, lease, payload=payload))
        assert isinstance(refused, Refused)
        assert refused.code is Code.BUSY


async def test_a_load_that_fails_is_told_and_the_evicted_model_comes_back(
    autojump_clock: MockClock,
) -> None:
    async with open_shared("a", "b") as (world, pool):
        pool.broken_now = {"b"}
        refused = await run(world, "b")
        assert isinstance(refused, Refused)
        assert refused.code is Code.MODEL_UNAVAILABLE
        assert "card" not in refused.message, "why is the owner's to know"
        await trio.sleep(CALM_S)
        assert load_ms(world) == {"a": 0}
        assert pool.live == ["a"]
        assert isinstance(await run(world, "a"), Ended)
        status = await read_status(world.node, Rates(world.node))
        assert any("b is not offered" in words and "card" in words for words in status.warnings)
        assert {model.name: model.state for model in status.models} == {
            "a": "ready",
            "b": "load_failed",
        }
        pool.broken_now = set()
        await trio.sleep(TRY_AGAIN_AFTER_S)
        assert load_ms(world) == {"a": 0, "b": LOAD_S * 1_000}
        assert isinstance(await run(world, "b"), Ended)


async def test_a_load_without_an_end_is_given_up(autojump_clock: MockClock) -> None:
    async with open_shared("a", "b") as (world, pool):
        pool.load_s = 10 * LOAD_MS_MAX
        refused = await run(world, "b")
        assert isinstance(refused, Refused)
        assert refused.code is Code.DEADLINE_EXCEEDED
        assert pool.live == ["b"]
        pool.load_s = LOAD_S
        await trio.sleep(LOAD_MS_MAX / 1_000)
        assert pool.live == ["a"]
        assert load_ms(world) == {"a": 0}


async def test_the_status_says_which_models_are_cold(autojump_clock: MockClock) -> None:
    async with open_shared("a", "b") as (world, _):
        status = await read_status(world.node, Rates(world.node))
        assert [(m.name, m.state, m.load_ms) for m in status.models] == [
            ("a", "ready", 0),
            ("b", "cold", LOAD_S * 1_000),
        ]
        assert [device.models for device in status.devices] == [("a",)]


@pytest.mark.parametrize("wait_s", [LOAD_S / 2, LOAD_S + 0.01])
async def test_a_client_that_leaves_during_a_load_harms_no_other(
    autojump_clock: MockClock, wait_s: float
) -> None:
    async with open_shared("a", "b") as (world, _):
        job, channel = await begin(world, "b")
        await trio.sleep(wait_s)
        for frame in job.cancel():
            channel.send_nowait(*frame)
        assert isinstance(await run(world, "b"), Ended)


@pytest.mark.parametrize("seed", range(6))
async def test_any_order_of_jobs_is_answered_or_refused_as_busy(
    autojump_clock: MockClock, seed: int
) -> None:
    """`open_shared` holds the node to its memory."""
    rng = random.Random(seed)
    names = ("a", "b", "c", "d")
    ends: list[Ended | Refused] = []
    async with open_shared(*names, hot=2) as (world, pool):

        async def one(name: str, tokens: int) -> None:
            ends.append(await run(world, name, tokens))

        async with trio.open_nursery() as nursery:
            for _ in range(40):
                nursery.start_soon(one, rng.choice(names), rng.randint(1, 50))
                await trio.sleep(rng.choice((0.0, 0.2, 1.0, 10.0)))
        answered = [end for end in ends if isinstance(end, Ended)]
        refusals = {end.code for end in ends if isinstance(end, Refused)}
        assert len(ends) == 40
        assert len(answered) > 10
        assert refusals <= {Code.BUSY}
        assert len(pool.loads) > len(names) + 2
