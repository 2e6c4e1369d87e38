"""The tables of tasks and prices fit the types that they speak of."""

from dataclasses import fields

import pytest

from protocol.messages import PriceCap, Task
from protocol.pricing import (
    PRICE_POSITIONS,
    UNIT_NAMES,
    PriceSheet,
    Units,
    asked_prices,
    cost_nano,
    share_of,
)
from protocol.tasks import TASKS


def test_each_task_has_one_row_with_known_units_and_prices() -> None:
    names = {position.name for position in PRICE_POSITIONS}
    assert set(TASKS) == set(Task)
    for spec in TASKS.values():
        assert set(spec.units) <= set(UNIT_NAMES)
        assert set(spec.prices) <= names
        assert spec.is_stream == ("output_tokens" in spec.units)


def test_the_price_positions_are_the_fields_of_a_sheet_and_of_a_cap() -> None:
    assert [position.field for position in PRICE_POSITIONS] == [f.name for f in fields(PriceSheet)]
    assert [position.cap_field for position in PRICE_POSITIONS] == [
        f.name for f in fields(PriceCap)
    ]
    assert {position.base_unit for position in PRICE_POSITIONS} - {None} == set(UNIT_NAMES)
    units = {position.unit for position in PRICE_POSITIONS} - {None}
    assert units == {field.name for field in fields(Units)}


def test_each_price_position_is_charged_for_its_own_unit() -> None:
    for position in PRICE_POSITIONS:
        if position.unit != position.base_unit:
            continue
        sheet = PriceSheet(**{position.field: 3})
        unit = position.unit
        units = Units(**{unit: position.per}) if unit else Units()
        assert cost_nano(sheet, units) == 3, position.name


def test_the_parts_of_a_charge_are_rounded_up_once_together() -> None:
    sheet = PriceSheet(input_nano_per_mtok=500_000, output_nano_per_mtok=500_000, image_nano=2)
    assert cost_nano(sheet, Units(input_tokens=1, output_tokens=1, images=1)) == 3


def test_cached_tokens_pay_their_own_price_instead_of_that_of_input() -> None:
    sheet = PriceSheet(input_nano_per_mtok=1_000_000, cached_nano_per_mtok=100_000)
    assert cost_nano(sheet, Units(input_tokens=1_000, cached_tokens=900)) == 100 + 90
    assert cost_nano(sheet.without_cached, Units(input_tokens=1_000, cached_tokens=900)) == 1_000
    free = PriceSheet(input_nano_per_mtok=1_000_000, cached_nano_per_mtok=0)
    assert cost_nano(free, Units(input_tokens=1_000, cached_tokens=900)) == 100


def test_the_positions_add_up_to_the_charge() -> None:
    sheet = PriceSheet(7_000_000, 11_000_000, 13, 17, 19_000, 3_000_000)
    units = Units(1_000, 500, 2, 3_000, cached_tokens=400)
    parts = [
        position.of(sheet) * position.count(units) / position.per for position in PRICE_POSITIONS
    ]
    assert cost_nano(sheet, units) == sum(parts)


def test_a_node_that_claims_cached_tokens_never_earns_more() -> None:
    with pytest.raises(ValueError, match="dearer"):
        PriceSheet(input_nano_per_mtok=5, cached_nano_per_mtok=6)
    with pytest.raises(ValueError, match="range"):
        Units(input_tokens=5, cached_tokens=6)


def test_a_share_of_a_sheet_without_a_price_for_cached_tokens_has_none() -> None:
    assert share_of(PriceSheet(100), 50) == PriceSheet(50)
    assert share_of(PriceSheet(100, cached_nano_per_mtok=11), 50).cached_nano_per_mtok == 6


def test_a_price_that_repeats_that_of_input_is_not_told_apart() -> None:
    names = [position.name for position, _ in asked_prices(PriceSheet(100, request_nano=1))]
    assert names == ["input_per_mtok", "request"]
    told = dict(asked_prices(PriceSheet(100, cached_nano_per_mtok=10)))
    assert {position.name: nano for position, nano in told.items()} == {
        "input_per_mtok": 100,
        "cached_input_per_mtok": 10,
    }
