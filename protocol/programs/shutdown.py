"""Ordered start and stop of a program that others may cancel at any moment.

Cancelling trio's tasks reaches all of them at once. But the books must outlive the settlements that
are written into them, and the workers must outlive the streams that read from them. So a program's
parts start in named stages, and stages stop in reverse order, each within its deadline:

    async with open_stages() as stages:
        await stages.start("books", writer.run)
        await stages.start("network", transport.run)
        await stopping.wait()
"""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import structlog
import trio

from protocol.programs.process_memory import trim_heap_forever

log = structlog.get_logger(__name__)

# A part without clients of its own ends within milliseconds of being cancelled.
STOP_WITHIN_S = 5.0

# `async def run(self, *, task_status)`.
Component = Callable[..., Awaitable[Any]]


class Stages:
    """Use `open_stages`. A stage may have several parts, which stop together."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self._nursery = nursery
        self._stages: dict[str, _Stage] = {}

    async def start(
        self,
        name: str,
        run: Component,
        *,
        ask: Callable[[], None] | None = None,
        within_s: float = STOP_WITHIN_S,
    ) -> Any:
        """Run a part; returns what it reports as started, raises what it raises before.

        When its stage stops, `ask` asks it to end by itself; it is cancelled if it has not within
        `within_s`, or at once if there is no `ask`.
        """
        stage = self._stages.setdefault(name, _Stage(name))
        stage.within_s = max(stage.within_s, within_s)
        return await self._nursery.start(stage.run, run, ask)

    async def stop(self, *, politely: bool) -> None:
        """Stop every stage, the last one first. Impolitely, none is asked and all are cancelled."""
        for stage in reversed(self._stages.values()):
            await stage.stop(politely=politely)


class _Stage:
    """Parts that stop together."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.within_s = 0.0
        self._scopes: list[trio.CancelScope] = []
        self._asks: list[Callable[[], None] | None] = []
        self._running = 0
        self._ended = trio.lowlevel.ParkingLot()

    async def run(
        self,
        component: Component,
        ask: Callable[[], None] | None,
        *,
        task_status: trio.TaskStatus[Any],
    ) -> None:
        scope = trio.CancelScope()
        self._scopes.append(scope)
        self._asks.append(ask)
        self._running += 1
        try:
            with scope:
                await component(task_status=_Shielding(scope, task_status))
        finally:
            self._running -= 1
            if not self._running:
                self._ended.unpark_all()

    async def stop(self, *, politely: bool) -> None:
        was_running = self._running
        if politely and any(self._asks):
            for ask, scope in zip(self._asks, self._scopes, strict=True):
                if ask is None:
                    scope.cancel()
                else:
                    ask()
            await self._wait_ended(self.within_s)
        for scope in self._scopes:
            scope.cancel()
        with trio.CancelScope(shield=True):
            await self._wait_ended(STOP_WITHIN_S)
        if self._running:
            # The stages below it must stop all the same: the books are closed in any case.
            log.error("stage_not_stopped", stage=self.name, parts=self._running)
        elif was_running:
            log.debug("stage_stopped", stage=self.name)

    async def _wait_ended(self, within_s: float) -> None:
        with trio.move_on_after(within_s):
            while self._running:
                await self._ended.park()


class _Shielding:
    """A task status that shields its task from outside once it has started. Until then a stop need
    not wait for it."""

    def __init__(self, scope: trio.CancelScope, status: trio.TaskStatus[Any]) -> None:
        self._scope = scope
        self._status = status

    def started(self, value: Any = None) -> None:
        self._scope.shield = True
        self._status.started(value)


@asynccontextmanager
async def open_stages() -> AsyncIterator[Stages]:
    """Stages that stop in reverse order when the block ends: politely if it ends by itself, at once
    if it is cancelled or fails, also while it stops politely."""
    async with trio.open_nursery() as nursery:
        stages = Stages(nursery)
        try:
            yield stages
            await stages.stop(politely=True)
        finally:
            with trio.CancelScope(shield=True):
                await stages.stop(politely=False)


class StopSignals:
    """SIGINT and SIGTERM: the first one sets `asked`, a second one cancels `scope` at once.

    Before the program is up there is nothing to stop in order, so the first one cancels then.
    """

    def __init__(self, scope: trio.CancelScope) -> None:
        self.asked = trio.Event()
        self.is_up = False
        self.has_hurried = False
        self._scope = scope

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled, or until `scope` is."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            async for number in signals:
                log.info("stopping", signal=signal.Signals(number).name)
                if self.asked.is_set() or not self.is_up:
                    break
                self.asked.set()
        self.has_hurried = True
        self._scope.cancel()


async def run_until_signal(
    body: Callable[[StopSignals], Awaitable[None]],
) -> None:
    """Run a program's `body`, which ends in good order once `asked` is set; its heap is trimmed
    meanwhile.

    Raises KeyboardInterrupt if a signal had to cut it short, so that the exit code says so.
    """
    async with trio.open_nursery() as nursery:
        signals = StopSignals(nursery.cancel_scope)
        await nursery.start(signals.run)
        nursery.start_soon(trim_heap_forever)
        await body(signals)
        nursery.cancel_scope.cancel()
    if signals.has_hurried:
        raise KeyboardInterrupt
