"""Prices that follow how full a node is, within what its owner allows."""

import pytest
import trio
from trio.testing import MockClock

from capanode.price_keeper import STEP_EVERY_S, PriceKeeper
from capanode.utilization_price import PriceBounds, next_percent, scaled
from protocol.limits import OFFER_INTERVAL_MIN_MS
from protocol.pricing import PRICE_NANO_MAX, PriceSheet
from tests.capanode.test_node import open_world

BOUNDS = PriceBounds(floor_percent=60, ceiling_percent=200)


@pytest.mark.parametrize(
    ("percent", "utilization", "following"),
    [
        (100, 1.0, 110),
        (100, 0.8, 110),
        (100, 0.5, 100),
        (100, 0.3, 95),
        (62, 0.0, 60),
        (60, 0.0, 60),
        (195, 1.0, 200),
        # The owner has narrowed the bounds since.
        (300, 0.5, 200),
        (10, 0.5, 60),
    ],
)
def test_a_full_node_asks_for_more_and_an_idle_one_for_less(
    percent: int, utilization: float, following: int
) -> None:
    assert next_percent(percent, utilization, BOUNDS) == following


def test_what_costs_something_never_becomes_free_or_too_dear() -> None:
    sheet = PriceSheet(input_nano_per_mtok=1, output_nano_per_mtok=1_000)
    assert scaled(sheet, 1) == PriceSheet(input_nano_per_mtok=1, output_nano_per_mtok=10)
    assert scaled(sheet, 100) == sheet
    dearest = PriceSheet(request_nano=PRICE_NANO_MAX)
    assert scaled(dearest, 1_000) == dearest


async def test_an_idle_node_becomes_cheaper_and_a_fixed_price_comes_back(
    autojump_clock: MockClock,
) -> None:
    async with open_world(price=None) as world, trio.open_nursery() as nursery:
        bounds: list[PriceBounds | None] = [BOUNDS]
        nursery.start_soon(PriceKeeper(world.node, bounds=lambda: bounds[0]).run)
        first = world.coordinator.attached[-1].message.models[0].price
        await trio.sleep(2 * STEP_EVERY_S + OFFER_INTERVAL_MIN_MS / 1_000 + 5)
        assert world.node.price_percent == 90
        assert world.coordinator.attached[-1].message.models[0].price == scaled(first, 90)
        bounds[0] = None
        await trio.sleep(STEP_EVERY_S + OFFER_INTERVAL_MIN_MS / 1_000 + 5)
        assert world.coordinator.attached[-1].message.models[0].price == first
        nursery.cancel_scope.cancel()


async def test_a_price_of_the_owners_own_does_not_move(autojump_clock: MockClock) -> None:
    async with open_world() as world:
        (model,) = world.node.models.values()
        own = model.price
        world.node.ask_percent(150)
        assert model.price == own
