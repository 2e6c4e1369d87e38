"""The way between the asyncio thread that speaks HTTP and the trio thread that runs the market.

A call enters trio through `TrioToken.run_sync_soon` and its answer returns through
`call_soon_threadsafe`. What several tasks have to say in one turn of trio's loop crosses with one
wake-up: a node's step delivers a token to thirty streams at once, and a wake-up costs more than
all of these tokens. A call that is given up on the asyncio side is cancelled in trio at once.

Every attribute is written by one side only, or is a deque that one side fills and one empties.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any, Generic, Self, TypeVar, TypeVarTuple, Unpack

import outcome
import structlog
import trio

from coordinator.errors import CoordinatorError
from protocol.errors import CapaError, Code

log = structlog.get_logger(__name__)

Head = TypeVar("Head")
Item = TypeVar("Item")
Result = TypeVar("Result")
Arguments = TypeVarTuple("Arguments")


class BridgeClosedError(CoordinatorError):
    """The market's side is shutting down or gone; the call has no answer."""

    code = Code.COORDINATOR_LOST


class CallCrashedError(CoordinatorError):
    """The call met a bug of ours. It was logged where it happened; the client learns no more."""

    code = Code.INTERNAL


class Bridge:
    """Carries calls from one asyncio loop into one trio run. `run` must be running in trio."""

    def __init__(self) -> None:
        self._token: trio.lowlevel.TrioToken | None = None
        self._nursery: trio.Nursery | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ready: deque[Callable[[], None]] = deque()
        self._wake_is_due = False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Trio: run the calls that arrive, until cancelled; they are cancelled too."""
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            try:
                await trio.sleep_forever()
            finally:
                # Before the nursery closes: a closed one refuses new tasks with a crash.
                self._nursery = None

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Answers return to this loop. Once, before the first call."""
        assert self._loop is None, "a bridge leads to one loop"
        self._loop = loop

    # The asyncio side.

    async def call(
        self,
        function: Callable[[Unpack[Arguments]], Awaitable[Result]],
        *args: *Arguments,
    ) -> Result:
        """Asyncio: run `function(*args)` in trio and return what it returns.

        Raises what it raises of our own errors, BridgeClosedError, CallCrashedError.
        """
        crossing = _Crossing(self, lambda: function(*args))
        try:
            while crossing.result is None:
                await crossing.wait()
        except asyncio.CancelledError:
            crossing.cancel()
            raise
        return crossing.result.unwrap()

    def stream(
        self,
        function: Callable[["Feed[Head, Item]", Unpack[Arguments]], Awaitable[Result]],
        *args: *Arguments,
        buffer_max: int,
        silence_s: float,
    ) -> "BatchStream[Head, Item, Result]":
        """Asyncio: start `function(feed, *args)` in trio and iterate over what it feeds.

        It waits while `buffer_max` items are untaken. When nothing came for `silence_s` (up to
        twice that) the stream yields an empty batch, so that its reader can show signs of life.
        Raises BridgeClosedError.
        """
        feed: Feed[Head, Item] = Feed(self, buffer_max)
        return BatchStream(
            feed, _Crossing(self, lambda: function(feed, *args)), self.loop, silence_s
        )

    async def count_tasks(self) -> dict[str, int]:
        """Asyncio: how many tasks each loop has, by the loop's name. Raises as `call`."""
        return {"trio": await self.call(_count_trio_tasks), "asyncio": len(asyncio.all_tasks())}

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        assert self._loop is not None, "no loop is attached"
        return self._loop

    def run_in_trio(self, callback: Callable[[], object]) -> None:
        """Asyncio: call `callback` in trio, soon. Raises BridgeClosedError."""
        try:
            if self._token is not None:
                self._token.run_sync_soon(callback)
                return
        except trio.RunFinishedError:
            pass
        raise BridgeClosedError("the market is not running")

    # The trio side.

    def start(self, crossing: "_Crossing[Any]") -> None:
        """Trio: begin a call that has arrived."""
        if self._nursery is None:
            crossing.settle(outcome.Error(BridgeClosedError("the market is shutting down")))
        else:
            self._nursery.start_soon(crossing.run)

    def run_in_asyncio(self, callback: Callable[[], None]) -> None:
        """Trio: call `callback` on the loop, soon, together with all others of this turn."""
        self._ready.append(callback)
        if not self._wake_is_due:
            self._wake_is_due = True
            try:
                self.loop.call_soon_threadsafe(self._run_ready)
            except RuntimeError:
                # The loop is closed, and the calls that waited for this ended with it.
                self._ready.clear()

    def _run_ready(self) -> None:
        # The flag falls first: what is appended from here on is either seen below, or wakes us
        # once more for nothing. The other way round, it could wait for ever.
        self._wake_is_due = False
        ready = self._ready
        while ready:
            ready.popleft()()


class Feed(Generic[Head, Item]):
    """What a streaming call in trio writes into. `head` is known before the first item."""

    __slots__ = ("_announced", "_bridge", "_buffer_max", "_room", "_wake", "head", "items")

    def __init__(self, bridge: Bridge, buffer_max: int) -> None:
        self.head: Head | None = None
        self.items: deque[Item] = deque()
        self._bridge = bridge
        self._buffer_max = buffer_max
        self._announced = False
        self._room: trio.Event | None = None
        self._wake: Callable[[], None] | None = None

    # The trio side.

    def put(self, item: Item) -> bool:
        """Returns False when the reader is far behind: then `await wait_room()` before the next."""
        self.items.append(item)
        if not self._announced:
            self._announced = True
            self._bridge.run_in_asyncio(self._announce)
        return len(self.items) < self._buffer_max

    async def wait_room(self) -> None:
        # The choices of one request write into one feed, and wait together.
        room = self._room = self._room or trio.Event()
        # Only now, or the reader may have taken everything before it could know that we wait.
        if len(self.items) >= self._buffer_max:
            await room.wait()
        if self._room is room:
            self._room = None

    # The asyncio side.

    def on_item(self, wake: Callable[[], None]) -> None:
        self._wake = wake

    def take(self) -> list[Item]:
        """Everything that has arrived; frees the writer if it waits for room."""
        items, batch = self.items, []
        while items:
            batch.append(items.popleft())
        room = self._room
        if room is not None:
            self._bridge.run_in_trio(room.set)
        return batch

    def _announce(self) -> None:
        self._announced = False
        if self._wake is not None:
            self._wake()


class BatchStream(Generic[Head, Item, Result]):
    """The reader's end of a streaming call: batches of items, then `result`. Close it always."""

    def __init__(
        self,
        feed: Feed[Head, Item],
        crossing: "_Crossing[Result]",
        loop: asyncio.AbstractEventLoop,
        silence_s: float,
    ) -> None:
        self._feed = feed
        self._crossing = crossing
        self._loop = loop
        self._silence_s = silence_s
        self._is_silent = False
        self._heard = False
        self._results: list[Result] = []
        self._timer = loop.call_later(silence_s, self._note_silence)
        feed.on_item(crossing.wake)

    @property
    def head(self) -> Head | None:
        """Known from the first item on, or from the end of a call that had none."""
        return self._feed.head

    @property
    def result(self) -> Result:
        """What the call returned; only after the last batch."""
        (result,) = self._results
        return result

    def close(self) -> None:
        """Cancel the call unless it has ended."""
        self._timer.cancel()
        if self._crossing.result is None:
            self._crossing.cancel()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> list[Item]:
        """The next batch; empty if it was silent for long. Raises what the call raised."""
        if self._results:
            raise StopAsyncIteration
        if self._feed.items:
            # A writer that is always ahead never makes us wait. The loop's other tasks still need a
            # turn; one of them cancels us when the client is gone.
            await asyncio.sleep(0)
        while True:
            # Read before the items: what is fed before the end is then certainly taken.
            result = self._crossing.result
            batch = self._feed.take()
            if batch:
                self._heard = True
                return batch
            if result is not None:
                self._results.append(result.unwrap())
                raise StopAsyncIteration
            if self._is_silent:
                self._is_silent = False
                return batch
            await self._crossing.wait()

    def _note_silence(self) -> None:
        if not self._heard:
            self._is_silent = True
            self._crossing.wake()
        self._heard = False
        # Half of the time: the item before may have come right after the look before.
        self._timer = self._loop.call_later(self._silence_s / 2, self._note_silence)


class _Crossing(Generic[Result]):
    """One call: entered on the asyncio side, run and settled on the trio side, answered back."""

    __slots__ = ("_bridge", "_function", "_scope", "_waiter", "result")

    def __init__(self, bridge: Bridge, function: Callable[[], Awaitable[Result]]) -> None:
        self.result: outcome.Outcome[Result] | None = None
        self._bridge = bridge
        self._function = function
        self._scope = trio.CancelScope()
        self._waiter: asyncio.Future[None] | None = None
        bridge.run_in_trio(lambda: bridge.start(self))

    # The asyncio side.

    async def wait(self) -> None:
        """Until `wake` is called."""
        self._waiter = self._bridge.loop.create_future()
        await self._waiter

    def wake(self) -> None:
        # The waiter may have been cancelled in this very turn of the loop.
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def cancel(self) -> None:
        with suppress(BridgeClosedError):  # then nothing is left to cancel
            self._bridge.run_in_trio(self._scope.cancel)

    # The trio side.

    async def run(self) -> None:
        result: outcome.Outcome[Result] = outcome.Error(BridgeClosedError("the call was cancelled"))
        try:
            with self._scope:
                result = await _capture(self._function)
        finally:
            self.settle(result)

    def settle(self, result: outcome.Outcome[Result]) -> None:
        self.result = result
        self._bridge.run_in_asyncio(self.wake)


async def _count_trio_tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def _capture(function: Callable[[], Awaitable[Result]]) -> outcome.Outcome[Result]:
    """What the call came to: a bug in it ends this call, and no other."""
    try:
        return outcome.Value(await function())
    except CapaError as error:
        return outcome.Error(error)
    except Exception as error:
        # The boundary of one call. Left to itself it would end the market's nursery.
        log.error("gateway_call_crashed", exc_info=error)
        return outcome.Error(CallCrashedError("the gateway failed: the operator was told"))
