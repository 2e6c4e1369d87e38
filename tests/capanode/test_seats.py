from collections.abc import Callable

import pytest

from capanode.seats import Seats
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import LeaseId


def lease(number: int) -> LeaseId:
    return LeaseId(f"lease-{number}")


def starter(started: list[int], number: int) -> Callable[[], None]:
    return lambda: started.append(number)


def fill(seats: Seats, count: int) -> list[int]:
    """Take and enter that many seats; returns the list of those that have started."""
    started: list[int] = []
    for number in range(count):
        seats.take(lease(number))
        seats.enter(lease(number), starter(started, number))
    return started


def test_jobs_start_at_once_while_slots_are_free_and_then_wait_in_order() -> None:
    seats = Seats(slots=2, queue_max=3)
    started = fill(seats, 5)
    assert started == [0, 1]
    assert (seats.running, seats.queued) == (2, 3)
    seats.leave(lease(1))
    assert started == [0, 1, 2]
    seats.leave(lease(3))
    seats.leave(lease(0))
    assert started == [0, 1, 2, 4]


def test_the_place_in_the_queue_counts_from_one() -> None:
    seats = Seats(slots=1, queue_max=2)
    places = []
    for number in range(3):
        seats.take(lease(number))
        places.append(seats.enter(lease(number), lambda: None))
    assert places == [0, 1, 2]


def test_a_seat_is_taken_before_its_payload_is_here() -> None:
    seats = Seats(slots=1, queue_max=0)
    seats.take(lease(0))
    assert (seats.running, seats.queued) == (0, 1)
    with pytest.raises(RemoteProtocolError) as caught:
        seats.take(lease(1))
    assert caught.value.code is Code.BUSY


def test_a_slow_upload_does_not_keep_a_slot_from_others() -> None:
    seats = Seats(slots=1, queue_max=1)
    started: list[int] = []
    seats.take(lease(0))
    seats.take(lease(1))
    seats.enter(lease(1), starter(started, 1))
    assert started == [1]
    assert seats.enter(lease(0), starter(started, 0)) == 1


def test_leaving_twice_or_without_a_seat_changes_nothing() -> None:
    seats = Seats(slots=1, queue_max=1)
    started = fill(seats, 2)
    seats.leave(lease(0))
    seats.leave(lease(0))
    seats.leave(lease(9))
    assert started == [0, 1]
    assert (seats.running, seats.queued) == (1, 0)


def test_advice_on_when_to_retry_follows_how_long_jobs_take() -> None:
    seats = Seats(slots=1, queue_max=0)
    for number in range(100):
        seats.take(lease(number))
        seats.enter(lease(number), lambda: None)
        seats.leave(lease(number), ran_ms=400.0)
    assert 350 <= seats.retry_after_ms <= 450
    for number in range(100):
        seats.take(lease(number))
        seats.leave(lease(number), ran_ms=10_000_000.0)
    assert seats.retry_after_ms == 30_000


def test_a_job_that_starts_while_another_leaves_may_leave_at_once_too() -> None:
    seats = Seats(slots=1, queue_max=3)
    started: list[int] = []
    for number in range(3):
        seats.take(lease(number))
    seats.enter(lease(0), starter(started, 0))
    seats.enter(lease(1), lambda: seats.leave(lease(1)))
    seats.enter(lease(2), starter(started, 2))
    seats.leave(lease(0))
    assert started == [0, 2]
    assert (seats.running, seats.queued) == (1, 0)


def test_jobs_of_batches_wait_behind_all_others_and_give_way_when_they_run() -> None:
    seats = Seats(slots=1, queue_max=4)
    started: list[int] = []
    for number in range(4):
        seats.take(lease(number))
    seats.enter(lease(0), starter(started, 0), give_way=lambda: seats.leave(lease(0)))
    assert seats.enter(lease(1), starter(started, 1), give_way=lambda: None) == 1
    seats.enter(lease(2), starter(started, 2))
    assert started == [0, 2]
    assert seats.enter(lease(3), starter(started, 3)) == 1
    seats.leave(lease(2))
    seats.leave(lease(3))
    assert started == [0, 2, 3, 1]


def test_jobs_of_batches_keep_no_other_out() -> None:
    seats = Seats(slots=1, queue_max=0)
    started: list[int] = []
    seats.take(lease(0), is_batch=True)
    seats.enter(lease(0), starter(started, 0), give_way=lambda: seats.leave(lease(0)))
    with pytest.raises(RemoteProtocolError):
        seats.take(lease(1), is_batch=True)
    seats.take(lease(2))
    assert seats.enter(lease(2), starter(started, 2)) == 1
    assert started == [0, 2]
    with pytest.raises(RemoteProtocolError):
        seats.take(lease(3))
