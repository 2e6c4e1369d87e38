"""The tables of tasks and prices fit the types that they speak of."""

from dataclasses import fields

from protocol.messages import PriceCap, Task
from protocol.pricing import PRICE_POSITIONS, UNIT_NAMES, PriceSheet, Units, cost_nano
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
    assert {position.unit for position in PRICE_POSITIONS} - {None} == set(UNIT_NAMES)


def test_each_price_position_is_charged_for_its_own_unit() -> None:
    for position in PRICE_POSITIONS:
        sheet = PriceSheet(**{position.field: 3})
        unit = position.unit
        units = Units(**{unit: position.per}) if unit else Units()
        assert cost_nano(sheet, units) == 3, position.name


def test_the_parts_of_a_charge_are_rounded_up_once_together() -> None:
    sheet = PriceSheet(input_nano_per_mtok=500_000, output_nano_per_mtok=500_000, image_nano=2)
    assert cost_nano(sheet, Units(input_tokens=1, output_tokens=1, images=1)) == 3
