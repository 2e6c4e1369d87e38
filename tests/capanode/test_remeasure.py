"""A bad measurement is not for good: models are measured again on a quiet machine."""

import pytest
import trio
from trio.testing import MockClock

from capanode.measurements import Speed
from capanode.node import Node
from capanode.observed_speed import SAMPLES_MIN, ObservedSpeed
from capanode.remeasure import AGAIN_AFTER_S, IDLE_FOR_S, Remeasurer
from protocol.ids import LeaseId
from protocol.limits import OFFER_INTERVAL_MIN_MS
from tests.capanode.fakes import STEP_S
from tests.capanode.test_node import open_world

CLAIMED = Speed(prefill_tps=1_000, decode_tps=40, batched_tps=200)
# What a machine under load did.
BAD = Speed(prefill_tps=30, decode_tps=3, batched_tps=3)


def spoil(node: Node, speed: Speed) -> None:
    """As if the model had been measured so while other programs were busy."""
    (model,) = node.models.values()
    model.speed = speed
    node.doubt_speed(model)


async def test_a_measurement_under_load_is_mended_when_the_machine_is_quiet(
    autojump_clock: MockClock,
) -> None:
    async with open_world(price=None) as world, trio.open_nursery() as nursery:
        dear = world.coordinator.attached[-1].message.models[0].price
        spoil(world.node, BAD)
        quiet = False
        nursery.start_soon(Remeasurer(world.node, is_quiet=lambda: quiet).run)
        await trio.sleep(2 * IDLE_FOR_S)
        (model,) = world.node.models.values()
        assert model.speed == BAD, "the machine is busy"
        quiet = True
        await trio.sleep(IDLE_FOR_S + OFFER_INTERVAL_MIN_MS / 1_000)
        assert model.speed.decode_tps == pytest.approx(1 / STEP_S, rel=0.1)
        offered = world.coordinator.attached[-1].message.models[0]
        assert offered.decode_tps == model.speed.decode_tps
        assert offered.price == dear, "as it was before"
        jobs = len(world.worker.terms)
        await trio.sleep(3 * AGAIN_AFTER_S)
        assert len(world.worker.terms) == jobs, "once is enough"
        nursery.cancel_scope.cancel()


async def test_a_job_during_a_measurement_spoils_it(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        spoil(world.node, BAD)
        (model,) = world.node.models.values()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.node.measure_again, model)
            await world.run_job()
        assert model.speed == BAD
        await trio.sleep(5)
        await world.node.measure_again(model)
        assert model.speed != BAD


async def test_real_jobs_that_are_faster_than_the_claim_lead_to_a_new_measurement(
    autojump_clock: MockClock,
) -> None:
    async with open_world() as world, trio.open_nursery() as nursery:
        (model,) = world.node.models.values()
        model.speed = BAD
        assert world.node.is_speed_settled(model)
        nursery.start_soon(Remeasurer(world.node, is_quiet=lambda: True).run)
        # A job that runs for all seconds between two looks.
        lease_id = LeaseId("lease")
        model.seats.take(lease_id)
        model.seats.enter(lease_id, lambda: None)
        await trio.sleep(0.5)
        for _ in range(SAMPLES_MIN + 5):
            model.output_tokens_done += 100
            await trio.sleep(1)
        model.seats.leave(lease_id)
        await trio.sleep(IDLE_FOR_S + 5)
        assert model.speed.decode_tps == pytest.approx(1 / STEP_S, rel=0.1)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("alone", "together", "contradicts"),
    [
        ([40.0] * SAMPLES_MIN, [], False),
        ([25.0] * SAMPLES_MIN, [], False),
        ([10.0] * SAMPLES_MIN, [], True),
        ([100.0] * SAMPLES_MIN, [], True),
        ([100.0] * (SAMPLES_MIN - 1), [], False),
        ([40.0] * SAMPLES_MIN, [60.0] * SAMPLES_MIN, False),
        ([], [400.0] * SAMPLES_MIN, True),
        ([0.0] * SAMPLES_MIN, [], False),
    ],
)
def test_a_claim_is_contradicted_by_many_seconds_of_work(
    alone: list[float], together: list[float], contradicts: bool
) -> None:
    observed = ObservedSpeed()
    for rate in alone:
        observed.note(rate, running=1)
    for rate in together:
        observed.note(rate, running=4)
    assert observed.contradicts(CLAIMED) == contradicts
    observed.clear()
    assert not observed.contradicts(CLAIMED)
