"""A clock that a step of the wall clock cannot move."""

from random import Random

import pytest
from structlog.testing import capture_logs

from protocol.programs.steady_clock import SLEW, SteadyClock
from tests.clocks import HandClock

START_MS = 1_767_225_600_000
HOUR_MS = 3_600_000


@pytest.fixture
def clocks() -> HandClock:
    return HandClock()


def steady(clocks: HandClock) -> SteadyClock:
    clock = SteadyClock(clocks, clocks)
    clock.now_ms()
    return clock


def test_it_is_the_wall_while_the_wall_is_steady(clocks: HandClock) -> None:
    clock = steady(clocks)
    for _ in range(1_000):
        clocks.pass_s(0.0317)
        assert abs(clock.now_ms() - clocks.wall_ms) <= 1


@pytest.mark.parametrize("step_ms", [HOUR_MS, -HOUR_MS])
def test_a_step_that_is_taken_back_moves_it_by_a_tenth_of_its_length(
    clocks: HandClock, step_ms: int
) -> None:
    clock = steady(clocks)
    clocks.wall_ms += step_ms
    for _ in range(50):
        clocks.pass_s(0.1)
        moved_ms = clock.now_ms() - (clocks.wall_ms - step_ms)
        assert abs(moved_ms) <= SLEW * 5_000 + 1
    clocks.wall_ms -= step_ms
    for _ in range(100):
        clocks.pass_s(0.1)
        clock.now_ms()
    assert abs(clock.now_ms() - clocks.wall_ms) <= 2, "it has come back to the wall"


def test_it_follows_a_step_that_stays(clocks: HandClock) -> None:
    clock = steady(clocks)
    clocks.wall_ms += 10_000
    clocks.pass_s(50)
    assert clocks.wall_ms - clock.now_ms() == pytest.approx(5_000, abs=2)
    clocks.pass_s(60)
    assert clock.now_ms() == clocks.wall_ms


def test_a_step_is_logged_once(clocks: HandClock) -> None:
    clock = steady(clocks)
    with capture_logs() as logs:
        for _ in range(10):
            clocks.pass_s(1)
            clock.now_ms()
        clocks.wall_ms += HOUR_MS
        for _ in range(10):
            clocks.pass_s(1)
            clock.now_ms()
    (event,) = logs
    assert (event["event"], event["by_ms"]) == ("clock_jumped", HOUR_MS)


def test_it_never_goes_back(clocks: HandClock) -> None:
    rng = Random(3)
    clock = steady(clocks)
    last_ms = 0
    for _ in range(2_000):
        clocks.pass_s(rng.random())
        if rng.random() < 0.1:
            clocks.wall_ms += rng.choice((-HOUR_MS, HOUR_MS, 700, -700, 3, -3))
        now_ms = clock.now_ms()
        assert now_ms >= last_ms
        last_ms = now_ms
