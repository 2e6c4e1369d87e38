"""What open leases and late payments take from an API key's budget."""

from coordinator.leasing.budgets import LAG_S, Budgets
from protocol.ids import LeaseId

ONE, TWO = LeaseId("1" * 26), LeaseId("2" * 26)


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_open_leases_share_what_is_left() -> None:
    budgets = Budgets(Clock())
    assert budgets.available_nano("k", 100) == 100
    budgets.hold("k", ONE, 60)
    assert budgets.available_nano("k", 100) == 40
    budgets.hold("k", TWO, 40)
    assert budgets.available_nano("k", 100) == 0
    assert budgets.available_nano("other", 100) == 100


def test_a_bound_only_shrinks_what_a_lease_may_cost() -> None:
    budgets = Budgets(Clock())
    budgets.hold("k", ONE, 60)
    budgets.bound("k", ONE, 10)
    assert budgets.available_nano("k", 100) == 90
    budgets.bound("k", ONE, 50)
    assert budgets.available_nano("k", 100) == 90


def test_what_was_paid_counts_until_the_callers_figure_has_caught_up() -> None:
    clock = Clock()
    budgets = Budgets(clock)
    budgets.hold("k", ONE, 60)
    clock.now += 100 * LAG_S
    assert budgets.available_nano("k", 100) == 40, "a lease counts for as long as it is open"
    budgets.end("k", ONE, 30)
    assert budgets.available_nano("k", 100) == 70
    clock.now += LAG_S
    # By now the caller's own figure is lower instead.
    assert budgets.available_nano("k", 70) == 70
    assert budgets._keys == {}


def test_what_is_left_is_never_negative() -> None:
    budgets = Budgets(Clock())
    budgets.hold("k", ONE, 60)
    assert budgets.available_nano("k", 10) == 0


def test_a_key_is_forgotten_with_its_last_lease_if_nothing_was_paid() -> None:
    budgets = Budgets(Clock())
    budgets.hold("k", ONE, 60)
    budgets.hold("k", TWO, 60)
    budgets.end("k", ONE, 0)
    assert budgets.available_nano("k", 100) == 40
    budgets.end("k", TWO, 0)
    assert budgets._keys == {}
