"""Places in flight: what a greedy account leaves to the others."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coordinator.gateway.errors import ApiError
from coordinator.gateway.http.fair_places import FairPlaces, Place


def fill(places: FairPlaces, account: str) -> list[Place]:
    """As many as the account can get."""
    taken: list[Place] = []
    with pytest.raises(ApiError) as caught:
        taken.extend(iter(lambda: places.enter(account), None))
    assert (caught.value.problem.status, caught.value.problem.code) == (429, "busy")
    assert caught.value.problem.retry_after_ms
    return taken


def test_one_account_gets_three_quarters_and_no_more() -> None:
    assert len(fill(FairPlaces(places_max=4_096, bytes_max=1), "greedy")) == 3_072


def test_greedy_accounts_with_running_jobs_leave_room_for_the_next_one() -> None:
    places = FairPlaces(places_max=4_096, bytes_max=1)
    assert [len(fill(places, account)) for account in "abcd"] == [3_072, 768, 192, 48]


@settings(deadline=None)
@given(st.integers(1, 12))
def test_endless_bodies_of_any_number_of_accounts_keep_no_account_out(greedy: int) -> None:
    places = FairPlaces(places_max=64, bytes_max=1)
    for account in map(str, range(greedy)):
        for _ in range(64):
            place = places.enter(account)
            place.begin_reading(place.leave)
    share = 64 // (greedy + 1)
    late = [places.enter("late") for _ in range(share)]
    assert len(late) == share


@settings(deadline=None)
@given(st.integers(1, 12), st.integers(1, 100))
def test_slow_bodies_of_any_number_of_accounts_leave_each_its_bytes(greedy: int, step: int) -> None:
    """Five accounts that filled the room one after the other left less than a megabyte of it."""
    bytes_max = 12_000
    places = FairPlaces(places_max=10_000, bytes_max=bytes_max)
    evicted: list[int] = []
    for account in map(str, range(greedy)):
        for number in range(1_000):
            place = places.enter(account)
            place.begin_reading(lambda number=number: evicted.append(number))  # type: ignore[misc]
            try:
                place.grow(100)
            except ApiError:
                break
    late = places.enter("late")
    late.begin_reading(lambda: evicted.append(-1))
    while late.body_bytes + step <= bytes_max // (greedy + 2):
        late.grow(step)
    assert -1 not in evicted


def test_a_running_request_keeps_its_bytes() -> None:
    places = FairPlaces(places_max=100, bytes_max=4_000)
    for account in "ab":
        running = places.enter(account)
        running.begin_reading(lambda: pytest.fail("its body is whole"))
        running.grow(3_000 if account == "a" else 700)
        running.end_reading()
    with pytest.raises(ApiError):
        places.enter("c").grow(900)


def test_what_is_left_can_be_taken_again() -> None:
    places = FairPlaces(places_max=40, bytes_max=1)
    for _ in range(3):
        taken = fill(places, "a")
        assert len(taken) == 30
        for place in taken:
            place.leave()


def test_an_account_at_its_limit_loses_its_own_idlest_body() -> None:
    places = FairPlaces(places_max=8, bytes_max=1)
    evicted: list[int] = []
    slow = [places.enter("a") for _ in range(6)]
    for number, place in enumerate(slow):
        place.begin_reading(lambda number=number: evicted.append(number))  # type: ignore[misc]
    slow[0].note_progress()
    other = places.enter("b")
    other.begin_reading(lambda: evicted.append(99))
    places.enter("a")
    assert evicted == [1]
    for place in slow:
        place.end_reading()
    with pytest.raises(ApiError):
        places.enter("a")


def test_bytes_are_shared_like_places() -> None:
    places = FairPlaces(places_max=100, bytes_max=4_000)
    greedy = places.enter("a")
    for _ in range(3):
        greedy.grow(900)
    with pytest.raises(ApiError):
        greedy.grow(900)
    places.enter("b").grow(900)
    greedy.shrink_to(100)
    greedy.grow(900)
    greedy.leave()
    again = places.enter("a")
    again.grow(2_000)
    again.shrink_to(5_000)
    assert again.body_bytes == 2_000
