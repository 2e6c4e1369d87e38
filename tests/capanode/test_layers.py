from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from capanode.layers import open_layer

Component = Callable[..., Awaitable[Any]]


def component(ends: list[str], name: str, *, ready_after_s: float = 0.0) -> Component:
    async def run(*, task_status: trio.TaskStatus[str]) -> None:
        try:
            await trio.sleep(ready_after_s)
            task_status.started(name)
            await trio.sleep_forever()
        finally:
            ends.append(name)

    return run


async def test_inner_layers_stop_before_outer_ones_even_when_all_is_cancelled() -> None:
    for _ in range(20):  # Trio wakes cancelled tasks in any order: one lucky run shows nothing.
        ends: list[str] = []
        with trio.CancelScope() as scope:
            async with open_layer() as outer:
                assert await outer.start(component(ends, "outer")) == "outer"
                async with open_layer() as inner:
                    await inner.start(component(ends, "inner"))
                    scope.cancel()
                    await trio.sleep_forever()
        assert ends == ["inner", "outer"]


async def test_a_task_that_is_still_starting_does_not_hold_up_a_stop(
    autojump_clock: MockClock,
) -> None:
    ends: list[str] = []
    with trio.move_on_after(1):
        async with open_layer() as layer:
            await layer.start(component(ends, "slow", ready_after_s=1_000))
    assert ends == ["slow"]
    assert trio.current_time() == pytest.approx(1.0)


async def test_a_failure_before_it_started_is_the_callers() -> None:
    async def fail(*, task_status: trio.TaskStatus[None]) -> None:
        raise ValueError("no")

    async with open_layer() as layer:
        with pytest.raises(ValueError, match="no"):
            await layer.start(fail)


async def test_a_failure_later_ends_what_is_inside() -> None:
    async def fail_soon(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        raise ValueError("crashed")

    with pytest.RaisesGroup(ValueError, flatten_subgroups=True):
        async with open_layer() as layer:
            await layer.start(fail_soon)
            await trio.sleep_forever()
