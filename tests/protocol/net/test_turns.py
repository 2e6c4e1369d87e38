import trio
import trio.testing

from protocol.net.turns import GroupTurns


async def test_groups_take_turns_however_many_of_one_wait() -> None:
    turns = GroupTurns(1)
    served: list[str] = []
    first = await turns.wait("crowd")

    async def work(group: str) -> None:
        turn = await turns.wait(group)
        served.append(group)
        turn.end()

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(work, "crowd")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(work, "lone")
        await trio.testing.wait_all_tasks_blocked()
        first.end()
    assert served.index("lone") <= 1
    assert len(served) == 51


async def test_no_more_turns_at_once_than_there_are() -> None:
    turns = GroupTurns(2)
    running = peak = 0

    async def work(number: int) -> None:
        nonlocal running, peak
        turn = await turns.wait(f"group {number % 3}")
        running += 1
        peak = max(peak, running)
        await trio.lowlevel.checkpoint()
        running -= 1
        turn.end()
        turn.end()

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(work, number)
    assert peak == 2


async def test_a_waiter_that_gives_up_takes_no_turn() -> None:
    turns = GroupTurns(1)
    first = await turns.wait("a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.wait, "b")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    first.end()
    with trio.fail_after(1):
        (await turns.wait("c")).end()


async def test_a_turn_that_comes_with_a_cancellation_goes_to_the_next() -> None:
    turns = GroupTurns(1)
    first = await turns.wait("a")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.wait, "b")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
        first.end()
    with trio.fail_after(1):
        (await turns.wait("c")).end()
