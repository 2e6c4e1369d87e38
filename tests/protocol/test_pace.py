"""How a budget that refills slows down who overdraws it."""

import pytest

from protocol.pace import Pace
from protocol.token_buckets import Rate


def test_nothing_waits_while_the_budget_lasts() -> None:
    pace = Pace(Rate(per_s=10.0, burst=5))
    assert [pace.pause_s(1, 0.0) for _ in range(5)] == [0.0] * 5


def test_pauses_last_until_the_debt_is_paid() -> None:
    pace = Pace(Rate(per_s=10.0, burst=5))
    assert pace.pause_s(25, 0.0) == pytest.approx(2.0)
    assert pace.pause_s(10, 2.0) == pytest.approx(1.0)


def test_idle_time_saves_up_no_more_than_a_burst() -> None:
    pace = Pace(Rate(per_s=10.0, burst=5))
    pace.pause_s(1, 0.0)
    assert pace.pause_s(15, 1_000.0) == pytest.approx(1.0)


def test_flood_gets_the_rate_and_not_more() -> None:
    """Whatever the pieces: who always goes on when allowed to has spent the rate in the end."""
    pace, now_s, spent = Pace(Rate(per_s=100.0, burst=50)), 0.0, 0
    while now_s < 10.0:
        now_s += pace.pause_s(7, now_s)
        spent += 7
    assert 1_000 <= spent <= 1_000 + 50 + 2 * 7
