"""Nested start and stop order for a program that others may cancel at any moment.

Cancelling trio's tasks reaches all of them at once. But the outbox must outlive the jobs, whose
receipts it writes, and the workers must outlive the streams that read from them: a layer's tasks
stop only when everything inside its block has stopped.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio


class Layer:
    """Starts tasks that last as long as the block of `open_layer`."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._scopes: list[trio.CancelScope] = []

    async def start(self, run: Callable[..., Awaitable[Any]]) -> Any:
        """Run a component; returns what it reports as started, raises what it raises before."""
        scope = trio.CancelScope()
        self._scopes.append(scope)

        async def run_in_scope(*, task_status: trio.TaskStatus[Any]) -> None:
            with scope:
                await run(task_status=_Shielding(scope, task_status))

        return await self._nursery.start(run_in_scope)

    def stop(self) -> None:
        for scope in self._scopes:
            scope.cancel()


class _Shielding:
    """A task status that shields its task from outside once it has started: until then whoever
    stops the program need not wait for it."""

    def __init__(self, scope: trio.CancelScope, status: trio.TaskStatus[Any]) -> None:
        self._scope = scope
        self._status = status

    def started(self, value: Any = None) -> None:
        self._scope.shield = True
        self._status.started(value)


@asynccontextmanager
async def open_layer() -> AsyncIterator[Layer]:
    """Everything inside the block stops before the layer's tasks do, however it is stopped."""
    async with trio.open_nursery() as nursery:
        layer = Layer(nursery)
        try:
            yield layer
        finally:
            layer.stop()
