"""Reservations of an API key's budget."""

from coordinator.gateway.budgets import _LINGER_S, Budgets


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_jobs_that_run_together_share_what_is_left() -> None:
    budgets = Budgets(Clock())
    assert budgets.available_nano("k", 100) == 100
    first = budgets.reserve("k", 60)
    assert budgets.available_nano("k", 100) == 40
    budgets.reserve("k", 40)
    assert budgets.available_nano("k", 100) == 0
    assert budgets.available_nano("other", 100) == 100
    first.shrink(10)
    assert budgets.available_nano("k", 100) == 50


def test_a_reservation_only_shrinks() -> None:
    reservation = Budgets(Clock()).reserve("k", 5)
    reservation.shrink(9)
    assert reservation.amount_nano == 5


def test_an_ended_job_counts_until_the_books_have_caught_up() -> None:
    clock = Clock()
    budgets = Budgets(clock)
    reservation = budgets.reserve("k", 60)
    reservation.shrink(30)
    budgets.end("k", reservation)
    assert budgets.available_nano("k", 100) == 70
    clock.now += _LINGER_S
    # By now the database counts it: the caller's own figure is lower instead.
    assert budgets.available_nano("k", 70) == 70
    assert budgets._keys == {}


def test_what_is_left_is_never_negative() -> None:
    budgets = Budgets(Clock())
    budgets.reserve("k", 60)
    assert budgets.available_nano("k", 10) == 0


def test_a_job_that_ends_late_still_finds_its_key() -> None:
    clock = Clock()
    budgets = Budgets(clock)
    early, late = budgets.reserve("k", 1), budgets.reserve("k", 2)
    budgets.end("k", early)
    clock.now += _LINGER_S
    assert budgets.available_nano("k", 10) == 8
    budgets.end("k", late)
    assert budgets.available_nano("k", 10) == 8
