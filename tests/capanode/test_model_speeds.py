"""Whose measurement counts for whom."""

from dataclasses import replace
from pathlib import Path

import trio
from trio.testing import MockClock

from capanode.benchmark import SpeedCache
from capanode.model_speeds import ModelSpeeds
from capanode.workers import ModelPlan
from protocol.manifest import manifest_digest
from protocol.offers import Hardware
from tests.capanode.fakes import FakeWorker, make_manifest
from tests.clocks import HandClock

MANIFEST = make_manifest()
PLAN = ModelPlan("a-model", manifest_digest(MANIFEST), MANIFEST, Path("/nowhere"), 2, 1, None)


async def test_what_another_engine_took_does_not_count(autojump_clock: MockClock) -> None:
    speeds = ModelSpeeds(
        SpeedCache(None), hardware=Hardware("cpu", "a CPU", 1, 1), software="1", clock=HandClock()
    )
    worker = FakeWorker()
    assert worker.info is not None
    slots = worker.info.slots
    async with trio.open_nursery() as nursery:
        await nursery.start(worker.run)
        speed = await speeds.measure(PLAN, worker)
        nursery.cancel_scope.cancel()
    assert speeds.known(PLAN, slots) == speed
    assert speeds.known(replace(PLAN, with_vllm=True), slots) is None
    assert speeds.known(PLAN, slots + 1) is None
