import os
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock

from protocol.programs.shutdown import StopSignals, open_stages, run_until_signal

Component = Callable[..., Awaitable[Any]]


def component(
    ends: list[str], name: str, *, ready_after_s: float = 0.0, asked: trio.Event | None = None
) -> Component:
    """Runs until cancelled, or until `asked`."""

    async def run(*, task_status: trio.TaskStatus[str]) -> None:
        try:
            await trio.sleep(ready_after_s)
            task_status.started(name)
            await (trio.Event() if asked is None else asked).wait()
            ends.append(f"{name} by itself")
        finally:
            ends.append(name)

    return run


async def test_later_stages_stop_before_earlier_ones_even_when_all_is_cancelled() -> None:
    for _ in range(20):  # Trio wakes cancelled tasks in any order: one lucky run shows nothing.
        ends: list[str] = []
        with trio.CancelScope() as scope:
            async with open_stages() as stages:
                assert await stages.start("books", component(ends, "books")) == "books"
                await stages.start("network", component(ends, "network"))
                scope.cancel()
                await trio.sleep_forever()
        assert ends == ["network", "books"]


async def test_a_stage_that_can_be_asked_ends_by_itself_before_the_next_one_stops() -> None:
    ends: list[str] = []
    asked = trio.Event()
    async with open_stages() as stages:
        await stages.start("books", component(ends, "books"))
        front = component(ends, "front", asked=asked)
        await stages.start("front", front, ask=asked.set, within_s=10)
    assert ends == ["front by itself", "front", "books"]


async def test_a_stage_that_does_not_end_when_asked_is_cut_at_its_deadline(
    autojump_clock: MockClock,
) -> None:
    ends: list[str] = []
    async with open_stages() as stages:
        await stages.start("books", component(ends, "books"))
        await stages.start("deaf", component(ends, "deaf"), ask=lambda: None, within_s=20)
    assert ends == ["deaf", "books"]
    assert trio.current_time() == pytest.approx(20)


async def test_a_cancel_ends_a_polite_stop_at_once(autojump_clock: MockClock) -> None:
    ends: list[str] = []
    with trio.move_on_after(2):
        async with open_stages() as stages:
            await stages.start("books", component(ends, "books"))
            await stages.start("deaf", component(ends, "deaf"), ask=lambda: None, within_s=20)
    assert ends == ["deaf", "books"]
    assert trio.current_time() == pytest.approx(2)


async def test_a_stage_that_is_stuck_does_not_keep_the_books_open(
    autojump_clock: MockClock,
) -> None:
    ends: list[str] = []

    async def stuck(*, task_status: trio.TaskStatus[None]) -> None:
        with trio.CancelScope(shield=True):
            task_status.started()
            await trio.sleep(60)
            ends.append("stuck")

    async with open_stages() as stages:
        await stages.start("books", component(ends, "books"))
        await stages.start("stuck", stuck)
    assert ends == ["books", "stuck"]


async def test_parts_of_one_stage_stop_together() -> None:
    ends: list[str] = []
    async with open_stages() as stages:
        await stages.start("books", component(ends, "books"))
        for name in ("a", "b"):
            await stages.start("workers", component(ends, name))
    assert sorted(ends[:2]) == ["a", "b"]
    assert ends[2:] == ["books"]


async def test_a_part_that_is_still_starting_does_not_hold_up_a_stop(
    autojump_clock: MockClock,
) -> None:
    ends: list[str] = []
    with trio.move_on_after(1):
        async with open_stages() as stages:
            await stages.start("slow", component(ends, "slow", ready_after_s=1_000))
    assert ends == ["slow"]
    assert trio.current_time() == pytest.approx(1.0)


async def test_a_failure_before_it_started_is_the_callers() -> None:
    async def fail(*, task_status: trio.TaskStatus[None]) -> None:
        raise ValueError("no")

    async with open_stages() as stages:
        with pytest.raises(ValueError, match="no"):
            await stages.start("fails", fail)


async def test_a_failure_later_ends_the_block_and_every_stage_in_order() -> None:
    ends: list[str] = []

    async def fail_soon(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        raise ValueError("crashed")

    with pytest.RaisesGroup(ValueError, flatten_subgroups=True):
        async with open_stages() as stages:
            await stages.start("books", component(ends, "books"))
            await stages.start("network", component(ends, "network"))
            await stages.start("network", fail_soon)
            await trio.sleep_forever()
    assert ends == ["network", "books"]


async def send(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)
    await trio.lowlevel.checkpoint()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_signal_asks_and_the_program_ends_cleanly(number: signal.Signals) -> None:
    async def body(signals: StopSignals) -> None:
        signals.is_up = True
        await send(number)
        await signals.asked.wait()

    await run_until_signal(body)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_signal_cuts_the_stop_short_and_says_so(number: signal.Signals) -> None:
    async def body(signals: StopSignals) -> None:
        signals.is_up = True
        await send(number)
        await signals.asked.wait()
        await send(number)
        await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        await run_until_signal(body)


async def test_a_signal_before_the_program_is_up_ends_it_at_once() -> None:
    async def body(signals: StopSignals) -> None:
        await send(signal.SIGTERM)
        await trio.sleep_forever()

    with pytest.raises(KeyboardInterrupt):
        await run_until_signal(body)


async def test_a_program_that_ends_by_itself_needs_no_signal() -> None:
    async def body(signals: StopSignals) -> None:
        signals.is_up = True

    await run_until_signal(body)
