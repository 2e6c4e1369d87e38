"""A card that is lost under way, where the owner has allowed the processor."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import trio
from trio.testing import MockClock

from capanode.processor_fallback import LOOK_EVERY_S, LOST_FOR_S, ProcessorFallback
from capanode.start_plan import on_processor
from capanode.status import Rates, read_status
from capanode.worker.jobs import WorkerState
from capanode.workers import ModelPlan
from protocol.client_session import Ended
from protocol.limits import OFFER_INTERVAL_MIN_MS
from protocol.offers import Hardware
from tests.capanode.fakes import HARDWARE, FakeWorker
from tests.capanode.test_node import World, make_plan, open_world

CARD = Hardware("cuda", "a card", 24 * 1024**3, 1)
SOON_S = OFFER_INTERVAL_MIN_MS / 1_000 + 1
NAME = "a-model"


@asynccontextmanager
async def open_lost(*, is_wanted: bool = True) -> AsyncIterator[tuple[World, FakeWorker]]:
    """A node on a card, which is lost."""
    plan = replace(make_plan(NAME), hardware=CARD, slots=64)
    async with open_world(plans=[plan], hardware=CARD) as world:

        def without_card(one: ModelPlan) -> ModelPlan:
            return on_processor(one, HARDWARE)

        fallback = ProcessorFallback(
            world.node,
            world.pool,
            without_card,
            is_wanted=lambda: is_wanted,
            on_milestone=world.milestones.append,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fallback.run)
            await trio.sleep(SOON_S)
            worker = world.worker
            set_state(world, worker, WorkerState.DEVICE_LOST)
            yield world, worker
            nursery.cancel_scope.cancel()


def set_state(world: World, worker: FakeWorker, state: WorkerState) -> None:
    worker.state = state
    world.pool.on_state[NAME](state)


def is_offered_on(world: World) -> str:
    """The kind of hardware that the offer names; empty without a model."""
    offer = world.coordinator.attached[-1].message
    return offer.hardware.kind if offer.models else ""


async def test_the_offer_is_withdrawn_and_comes_back_as_measured_on_the_processor(
    autojump_clock: MockClock,
) -> None:
    async with open_lost() as (world, lost):
        await trio.sleep(SOON_S)
        assert is_offered_on(world) == ""
        await trio.sleep(LOST_FOR_S + 2 * LOOK_EVERY_S + SOON_S)
        assert is_offered_on(world) == "cpu"
        assert world.worker is not lost
        (offered,) = world.coordinator.attached[-1].message.models
        assert offered.slots < 64
        assert isinstance(await world.run_job(), Ended)
        status = await read_status(world.node, Rates(world.node))
        assert status.hardware.kind == "cpu"
        assert any("processor until its GPU works again" in words for words in status.warnings)


async def test_the_model_goes_back_to_its_card_when_it_has_no_job(
    autojump_clock: MockClock,
) -> None:
    async with open_lost() as (world, lost):
        await trio.sleep(LOST_FOR_S + 2 * LOOK_EVERY_S + SOON_S)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.run_job, 50)
            await trio.sleep(0.1)
            set_state(world, lost, WorkerState.READY)
            (model,) = world.node.models.values()
            assert model.worker is not lost
        await trio.sleep(LOOK_EVERY_S + SOON_S)
        assert is_offered_on(world) == "cuda"
        (model,) = world.node.models.values()
        assert model.worker is lost
        assert isinstance(await world.run_job(), Ended)
        assert lost.terms


async def test_a_card_that_is_back_soon_is_waited_for(autojump_clock: MockClock) -> None:
    async with open_lost() as (world, lost):
        await trio.sleep(LOST_FOR_S / 2)
        set_state(world, lost, WorkerState.READY)
        await trio.sleep(2 * LOST_FOR_S)
        assert world.worker is lost
        assert is_offered_on(world) == "cuda"


async def test_without_the_owners_leave_the_model_stays_away(autojump_clock: MockClock) -> None:
    async with open_lost(is_wanted=False) as (world, lost):
        await trio.sleep(10 * LOST_FOR_S)
        assert world.worker is lost
        assert is_offered_on(world) == ""
