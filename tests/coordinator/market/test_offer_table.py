"""Columns stay true to what was put in them, whatever comes and goes."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from coordinator.market.offers.table import CODES, VALUES, ModelTable, code_of, tie_of
from tests.coordinator.market_makers import node


def put(table: ModelTable, number: int) -> None:
    table.put(node(number), [float(number)] * VALUES, [number] * CODES, tie=tie_of(node(number)))


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 60)), max_size=200))
def test_rows_follow_their_nodes(steps: list[tuple[bool, int]]) -> None:
    table = ModelTable("m")
    expected: set[int] = set()
    for is_added, number in steps:
        if is_added:
            put(table, number)
            expected.add(number)
        elif number in expected:
            table.remove(node(number))
            expected.discard(number)
    rows = table.rows()
    assert len(table) == rows.size == len(expected)
    for number in expected:
        row = table.row_of[node(number)]
        assert table.nodes[row] == node(number)
        assert set(rows.values[:, row]) == {float(number)}
        assert set(rows.codes[:, row]) == {number}
        assert int(rows.ties[row]) == tie_of(node(number))


def test_named_rows_come_in_the_order_asked_for_and_once() -> None:
    table = ModelTable("m")
    for number in range(5):
        put(table, number)
    rows = table.rows_of([node(3), node(77), node(1), node(3)])
    assert rows.value(0).tolist() == [3.0, 1.0]
    assert rows.row_number(1) == table.row_of[node(1)]
    again = rows.select(np.array([1]))
    assert again.row_number(0) == table.row_of[node(1)]
    assert table.rows_of([node(77)]).size == 0


def test_words_have_the_same_code_everywhere() -> None:
    assert code_of("eu-west") == 1751436528581119906
    assert code_of("eu-west") != code_of("eu-north")
    assert 0 <= code_of("") < 2**63
