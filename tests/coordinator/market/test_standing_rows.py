"""How counts fade over years, and how measurements correct what a node claims."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coordinator.market.standing_rows import HALF_LIFE_MS, Ratios, StandingRows
from coordinator.market.standings import FAILURES, PRIOR_RATIO, SUCCESSES, Standings
from tests.coordinator.market_makers import NOW_MS

YEAR_MS = 365 * 24 * 3_600_000


def fresh() -> tuple[StandingRows, int]:
    rows = StandingRows(seats_at_start=4.0)
    return rows, rows.take()


def read(rows: StandingRows, slot: int, *, now_ms: int = NOW_MS) -> Standings:
    return rows.read(np.array([slot]), now_ms=now_ms)


def measured(*ratios: float) -> Standings:
    """After these measurements of the time to the first output."""
    rows, slot = fresh()
    for ratio in ratios:
        rows.learn(slot, Ratios(ratio), NOW_MS)
    return read(rows, slot)


def test_years_of_silence_do_not_overflow() -> None:
    rows, slot = fresh()
    for _ in range(3):
        rows.count(slot, FAILURES, NOW_MS, 1.0)
    later_ms = NOW_MS + 10 * YEAR_MS
    assert float(read(rows, slot, now_ms=later_ms).success()[0]) == pytest.approx(0.9)
    rows.count(slot, SUCCESSES, later_ms, 1.0)
    assert 0.9 < float(read(rows, slot, now_ms=later_ms).success()[0]) < 0.92


def test_rebasing_changes_no_estimate() -> None:
    (plain, slot), (rebased, _) = fresh(), fresh()
    for rows in (plain, rebased):
        rows.count(slot, SUCCESSES, NOW_MS, 1.0)
        rows.learn(slot, Ratios(2.0, 3.0), NOW_MS)
    # The landmark of one of them moves on the way, which must not show.
    rebased.count(rebased.take(), SUCCESSES, NOW_MS + 70 * HALF_LIFE_MS, 1.0)
    now_ms = NOW_MS + 71 * HALF_LIFE_MS
    estimates = []
    for rows in (plain, rebased):
        rows.count(slot, FAILURES, now_ms, 1.0)
        rows.learn(slot, Ratios(2.0), now_ms)
        row = read(rows, slot, now_ms=now_ms)
        estimates.append(
            [float(each[0]) for each in (row.success(), row.first_ratio(), row.decode_ratio())]
        )
    assert estimates[0] == estimates[1]


def test_an_understated_claim_is_corrected_as_well() -> None:
    row = measured(*[0.1] * 10)
    assert float(row.first_ratio()[0]) < 0.15
    assert float(row.decode_ratio()[0]) == pytest.approx(PRIOR_RATIO)


def test_a_node_that_slows_down_shows_however_good_its_past() -> None:
    assert float(measured(*[1.0] * 1_000, *[8.0] * 40).first_ratio()[0]) > 4.0


@given(st.floats(0, 1e12))
def test_one_absurd_measurement_moves_little(ratio: float) -> None:
    assert 0.75 < float(measured(*[1.0] * 30, ratio).first_ratio()[0]) < 1.35


def test_a_row_that_is_given_back_is_clean_for_the_next_node() -> None:
    rows, slot = fresh()
    rows.count(slot, FAILURES, NOW_MS, 1.0)
    rows.lose_seats(slot)
    rows.give_back(slot)
    assert rows.take() == slot
    assert float(read(rows, slot).success()[0]) == pytest.approx(0.9)
    assert rows.seats(slot) == 4
