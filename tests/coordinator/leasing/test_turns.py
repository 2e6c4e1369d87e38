"""Fair turns for seats, in virtual time."""

from functools import partial

import pytest
import trio
from trio.testing import MockClock

from coordinator.leasing.model_queue import POLL_S
from coordinator.leasing.turns import Turns
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import PeerId

HUNGRY, MODEST = PeerId("hungry"), PeerId("modest")
BUSY = RemoteProtocolError("all busy", code=Code.NO_NODE_FITS, retry_after_ms=700)


class Seats:
    """So many seats; a grant holds one for `job_s`, then gives it back."""

    def __init__(self, turns: Turns, nursery: trio.Nursery, *, seats: int, job_s: float) -> None:
        self.turns, self.nursery = turns, nursery
        self.free, self.job_s = seats, job_s
        self.asked = 0
        self.granted: list[PeerId] = []
        self.refused: list[tuple[PeerId, RemoteProtocolError]] = []

    async def ask(
        self,
        client: PeerId,
        *,
        within_s: float = 30.0,
        is_choosy: bool = False,
        is_batch: bool = False,
        is_resumed: bool = False,
    ) -> None:
        async def grant() -> None:
            self.asked += 1
            if not self.free:
                raise BUSY
            self.free -= 1
            self.granted.append(client)
            self.nursery.start_soon(self._work)

        try:
            await self.turns.take(
                "m",
                client,
                grant,
                within_s=within_s,
                is_choosy=is_choosy,
                is_batch=is_batch,
                is_resumed=is_resumed,
            )
        except RemoteProtocolError as error:
            self.refused.append((client, error))

    async def _work(self) -> None:
        await trio.sleep(self.job_s)
        self.free += 1
        self.turns.wake()


async def test_a_free_seat_is_taken_at_once(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        seats = Seats(Turns(), nursery, seats=1, job_s=1.0)
        await seats.ask(MODEST)
        assert trio.current_time() == 0.0


async def test_no_seat_stands_idle_while_somebody_waits(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        seats = Seats(Turns(), nursery, seats=2, job_s=1.0)
        for _ in range(20):
            nursery.start_soon(seats.ask, MODEST)
    assert len(seats.granted) == 20
    assert trio.current_time() == 10.0


async def test_turns_go_round_among_clients(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        seats = Seats(Turns(), nursery, seats=1, job_s=1.0)
        for _ in range(20):
            nursery.start_soon(seats.ask, HUNGRY)
        await trio.sleep(0.1)
        for _ in range(3):
            nursery.start_soon(seats.ask, MODEST)
    assert seats.granted[:7].count(MODEST) == 3, "every second turn"
    assert len(seats.granted) == 23


async def test_a_client_that_waits_too_long_is_told_when_to_come_back(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        seats = Seats(Turns(), nursery, seats=1, job_s=5.0)
        for _ in range(12):
            nursery.start_soon(seats.ask, MODEST)
    assert len(seats.granted) == 6 or len(seats.granted) == 7
    waits_ms = [error.retry_after_ms for _, error in seats.refused]
    assert all(wait_ms is not None and wait_ms >= 5_000 for wait_ms in waits_ms), waits_ms
    assert {error.code for _, error in seats.refused} == {Code.NO_NODE_FITS}


async def test_a_newcomer_does_not_overtake_those_who_wait(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        seats = Seats(Turns(), nursery, seats=0, job_s=1.0)
        nursery.start_soon(seats.ask, HUNGRY)
        await trio.sleep(POLL_S / 2)
        seats.free = 1
        await seats.ask(MODEST)
        assert seats.granted == [HUNGRY, MODEST]


async def test_a_batch_waits_until_no_other_request_does(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        seats = Seats(Turns(), nursery, seats=1, job_s=1.0)
        nursery.start_soon(seats.ask, HUNGRY)
        await trio.sleep(0.1)
        for _ in range(3):
            nursery.start_soon(partial(seats.ask, MODEST, is_batch=True))
        await trio.sleep(0.1)
        for _ in range(3):
            nursery.start_soon(seats.ask, HUNGRY)
    assert seats.granted == [HUNGRY] * 4 + [MODEST] * 3


async def test_a_seat_that_becomes_free_without_our_doing_is_found(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        seats = Seats(Turns(), nursery, seats=0, job_s=1.0)
        nursery.start_soon(seats.ask, MODEST)
        await trio.sleep(5)
        seats.free = 1
        await trio.sleep(2 * POLL_S)
        assert seats.granted == [MODEST]


async def test_a_request_that_names_its_nodes_does_not_wait_for_others(
    autojump_clock: MockClock,
) -> None:
    turns = Turns()
    async with trio.open_nursery() as nursery:
        full = Seats(turns, nursery, seats=0, job_s=1.0)
        nursery.start_soon(full.ask, HUNGRY)
        await trio.sleep(0.1)
        idle = Seats(turns, nursery, seats=1, job_s=1.0)
        await idle.ask(MODEST, is_choosy=True)
        assert trio.current_time() == pytest.approx(0.1)
        full.free = 1


async def test_other_errors_pass_through_and_leave_no_queue(autojump_clock: MockClock) -> None:
    turns = Turns()

    async def grant() -> None:
        raise RemoteProtocolError("no money", code=Code.OUT_OF_FUNDS)

    with pytest.raises(RemoteProtocolError, match="no money"):
        await turns.take("m", MODEST, grant, within_s=5)
    assert turns.waiting("m") == 0


async def test_a_thousand_requests_of_one_client_wait_and_are_served(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        seats = Seats(Turns(), nursery, seats=100, job_s=1.0)
        for _ in range(1_000):
            nursery.start_soon(seats.ask, HUNGRY)
    assert len(seats.granted) == 1_000
    assert trio.current_time() == 10.0, "no seat stood idle"
    assert seats.asked < 3_000, "a seat is not asked for by all who wait"


async def test_seats_that_nothing_told_of_are_all_found(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        seats = Seats(Turns(), nursery, seats=0, job_s=60.0)
        for _ in range(500):
            nursery.start_soon(seats.ask, HUNGRY)
        await trio.sleep(1)
        seats.free = 400
        await trio.sleep(2 * POLL_S)
        assert len(seats.granted) == 400


async def test_one_client_cannot_keep_another_out_of_a_full_queue(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        seats = Seats(Turns(waiting_max=100), nursery, seats=0, job_s=1.0)
        for _ in range(105):
            nursery.start_soon(seats.ask, HUNGRY)
        await trio.sleep(0.1)
        assert [error.code for _, error in seats.refused] == [Code.RATE_LIMITED] * 5
        for _ in range(60):
            nursery.start_soon(seats.ask, MODEST)
        await trio.sleep(0.1)
        assert seats.turns.waiting("m") == 100
        # Both have their half; what is beyond it was refused to the one that asked for more.
        refused = [client for client, _ in seats.refused[5:]]
        assert (refused.count(MODEST), refused.count(HUNGRY)) == (10, 50)
        nursery.cancel_scope.cancel()
    assert seats.turns.waiting("m") == 0, "those that are cancelled leave"


async def test_clients_that_come_one_by_one_find_a_place_in_a_queue_that_others_filled(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        seats = Seats(Turns(waiting_max=50), nursery, seats=0, job_s=1.0)
        for number in range(5):
            for _ in range(50):
                nursery.start_soon(seats.ask, PeerId(f"hungry-{number}"))
        await trio.sleep(0.1)
        seats.refused.clear()
        nursery.start_soon(seats.ask, MODEST)
        await trio.sleep(0.1)
        assert MODEST not in [client for client, _ in seats.refused]
        nursery.cancel_scope.cancel()


async def test_the_rest_of_an_answer_goes_before_other_requests_of_its_client(
    autojump_clock: MockClock,
) -> None:
    order: list[str] = []
    turns = Turns()
    is_free = False

    async def ask(name: str, client: PeerId, *, is_resumed: bool = False) -> None:
        async def grant() -> None:
            if not is_free:
                raise BUSY
            order.append(name)
            await trio.sleep(0.01)

        await turns.take("m", client, grant, within_s=9.0, is_resumed=is_resumed)

    async with trio.open_nursery() as nursery:
        for name in ("first", "second"):
            nursery.start_soon(ask, name, HUNGRY)
            await trio.sleep(0.1)
        nursery.start_soon(ask, "other", MODEST)
        await trio.sleep(0.1)
        nursery.start_soon(partial(ask, is_resumed=True), "rest", HUNGRY)
        await trio.sleep(0.1)
        is_free = True
        for _ in range(4):
            turns.wake()
            await trio.sleep(0.02)
    assert order == ["other", "rest", "first", "second"]


async def test_a_wait_in_vain_is_told_no_shorter_one(autojump_clock: MockClock) -> None:
    """Without any grant to go by, half a second was told to clients that had waited for minutes."""
    async with trio.open_nursery() as nursery:
        seats = Seats(Turns(), nursery, seats=0, job_s=1.0)
        await seats.ask(MODEST, within_s=18.0)
        ((_, error),) = seats.refused
        assert error.retry_after_ms is not None
        assert 18_000 <= error.retry_after_ms <= 60_000
