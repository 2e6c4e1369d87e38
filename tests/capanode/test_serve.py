import signal
from typing import cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from capanode.errors import IsolationError
from capanode.node import Milestone, Node
from capanode.sandbox.probe import IsolationReport
from capanode.serve import Stopping, require_isolation, stop_on_signal
from protocol.messages import IsolationTier


class FakeNode:
    def __init__(self) -> None:
        self.stops = 0

    def stop(self) -> None:
        self.stops += 1


async def interrupt() -> None:
    signal.raise_signal(signal.SIGINT)
    await wait_all_tasks_blocked()


def test_without_a_sandbox_a_node_does_not_start() -> None:
    advice = ("install bubblewrap", "until then this node refuses remote jobs")
    report = IsolationReport(IsolationTier.NONE, (), advice, None)
    told: list[Milestone] = []
    with pytest.raises(IsolationError, match="install bubblewrap; until then"):
        require_isolation(report, told.append)
    assert not told


@pytest.mark.parametrize(("has_started", "stops"), [(False, 0), (True, 1)])
async def test_ctrl_c_drains_a_node_that_is_up_and_ends_one_that_is_not(
    has_started: bool, stops: int
) -> None:
    node = FakeNode()
    async with trio.open_nursery() as nursery:
        stopping = await nursery.start(stop_on_signal, cast(Node, node), nursery.cancel_scope)
        assert isinstance(stopping, Stopping)
        stopping.has_started = has_started
        with trio.move_on_after(5, shield=True):
            await interrupt()
        assert nursery.cancel_scope.cancel_called != has_started
        nursery.cancel_scope.cancel()
    assert node.stops == stops


async def test_a_second_ctrl_c_does_not_wait() -> None:
    node = FakeNode()
    async with trio.open_nursery() as nursery:
        stopping = await nursery.start(stop_on_signal, cast(Node, node), nursery.cancel_scope)
        stopping.has_started = True
        with trio.move_on_after(5, shield=True):
            await interrupt()
            assert not nursery.cancel_scope.cancel_called
            await interrupt()
        assert nursery.cancel_scope.cancel_called
    assert node.stops == 1
