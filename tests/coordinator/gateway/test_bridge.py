"""Calls and streams between asyncio and trio, with both kinds of thread for real."""

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

import pytest
import structlog.testing
import trio

from coordinator.gateway.bridge import Bridge, BridgeClosedError, CallCrashedError, Feed
from protocol.errors import Code, RemoteProtocolError
from tests.coordinator.gateway.harness import WITHIN_S, TrioThread

T = TypeVar("T")


class Ends:
    """The two ends of a bridge: trio in a thread, asyncio in this one."""

    def __init__(self, thread: TrioThread, runner: asyncio.Runner) -> None:
        self.thread = thread
        self.bridge: Bridge = thread.bridge
        self._runner = runner
        self.bridge.attach(runner.get_loop())

    def run(self, work: Callable[[], Awaitable[T]]) -> T:
        async def bounded() -> T:
            async with asyncio.timeout(WITHIN_S):
                return await work()

        return self._runner.run(bounded())


@pytest.fixture
def ends() -> Iterator[Ends]:
    with TrioThread() as thread, asyncio.Runner() as runner:
        yield Ends(thread, runner)


async def add(a: int, b: int) -> int:
    await trio.lowlevel.checkpoint()
    return a + b


async def refuse() -> None:
    raise RemoteProtocolError("no", code=Code.BUSY)


async def crash() -> None:
    raise ZeroDivisionError("a secret")


async def count(feed: Feed[str, int], until: int) -> str:
    feed.head = "head"
    for number in range(until):
        if not feed.put(number):
            await feed.wait_room()
    return "done"


def test_a_call_returns_what_trio_returned(ends: Ends) -> None:
    assert ends.run(lambda: ends.bridge.call(add, 1, 2)) == 3


def test_a_call_raises_our_own_errors(ends: Ends) -> None:
    with pytest.raises(RemoteProtocolError, match="no") as caught:
        ends.run(lambda: ends.bridge.call(refuse))
    assert caught.value.code is Code.BUSY


def test_a_crash_is_logged_and_told_without_details(ends: Ends) -> None:
    with structlog.testing.capture_logs() as logs, pytest.raises(CallCrashedError) as caught:
        ends.run(lambda: ends.bridge.call(crash))
    assert "secret" not in str(caught.value)
    assert [entry["event"] for entry in logs] == ["gateway_call_crashed"]
    assert ends.run(lambda: ends.bridge.call(add, 2, 2)) == 4


def test_many_calls_at_once_each_get_their_own_answer(ends: Ends) -> None:
    async def all_of_them() -> list[int]:
        return await asyncio.gather(*(ends.bridge.call(add, n, n) for n in range(200)))

    assert ends.run(all_of_them) == [2 * n for n in range(200)]


def test_giving_a_call_up_cancels_it_in_trio(ends: Ends) -> None:
    started, cancelled = trio.Event(), trio.Event()

    async def wait_for_ever() -> None:
        started.set()
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async def give_up() -> None:
        task = asyncio.ensure_future(ends.bridge.call(wait_for_ever))
        await ends.bridge.call(started.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await ends.bridge.call(cancelled.wait)

    ends.run(give_up)


def test_stopping_trio_answers_the_calls_that_run(ends: Ends) -> None:
    started = trio.Event()

    async def wait_for_ever() -> None:
        started.set()
        await trio.sleep_forever()

    async def outlive() -> None:
        task = asyncio.ensure_future(ends.bridge.call(wait_for_ever))
        await ends.bridge.call(started.wait)
        ends.thread.stop()
        with pytest.raises(BridgeClosedError):
            await task

    ends.run(outlive)


def test_a_call_into_a_stopped_trio_is_refused(ends: Ends) -> None:
    ends.thread.__exit__()
    with pytest.raises(BridgeClosedError):
        ends.run(lambda: ends.bridge.call(add, 1, 2))


def test_a_bridge_that_never_ran_refuses_calls() -> None:
    with asyncio.Runner() as runner:
        bridge = Bridge()
        bridge.attach(runner.get_loop())
        with pytest.raises(BridgeClosedError):
            runner.run(bridge.call(add, 1, 2))


def test_a_stream_delivers_everything_in_order_then_its_result(ends: Ends) -> None:
    async def read() -> None:
        stream = ends.bridge.stream(count, 10_000, buffer_max=64, silence_s=60)
        numbers = [number async for batch in stream for number in batch]
        assert numbers == list(range(10_000))
        assert (stream.head, stream.result) == ("head", "done")
        assert await anext(stream, None) is None
        stream.close()

    ends.run(read)


def test_a_stream_may_be_empty(ends: Ends) -> None:
    async def read() -> None:
        stream = ends.bridge.stream(count, 0, buffer_max=64, silence_s=60)
        assert [batch async for batch in stream] == []
        assert (stream.head, stream.result) == ("head", "done")
        stream.close()

    ends.run(read)


def test_items_of_one_turn_cross_with_one_wake_up(
    ends: Ends, monkeypatch: pytest.MonkeyPatch
) -> None:
    wakes = []
    unfinished = 16
    go = trio.Event()
    all_fed = threading.Event()

    async def burst(feed: Feed[None, int]) -> None:
        nonlocal unfinished
        await go.wait()
        for number in range(32):
            feed.put(number)
        unfinished -= 1
        if not unfinished:
            all_fed.set()

    async def read() -> None:
        streams = [ends.bridge.stream(burst, buffer_max=64, silence_s=60) for _ in range(16)]
        tasks = [asyncio.ensure_future(anext(stream)) for stream in streams]
        await ends.bridge.call(trio.lowlevel.checkpoint)
        loop = asyncio.get_running_loop()
        wake_up = loop.call_soon_threadsafe

        def count_wake(callback: Callable[[], object]) -> asyncio.Handle:
            wakes.append(1)
            return wake_up(callback)

        monkeypatch.setattr(loop, "call_soon_threadsafe", count_wake)
        ends.bridge.run_in_trio(go.set)
        # The loop is kept from running in between, as it is when it has something else to do.
        assert all_fed.wait(WITHIN_S)
        # None, where the wake-up of the call above is still due and serves for these items, too.
        assert len(wakes) <= 1
        batches = await asyncio.gather(*tasks)
        assert [len(batch) for batch in batches] == [32] * 16
        for stream in streams:
            stream.close()

    ends.run(read)


def test_a_slow_reader_holds_the_writer_back(ends: Ends) -> None:
    written = 0

    async def write(feed: Feed[None, int]) -> None:
        nonlocal written
        for number in range(100):
            written = number
            if not feed.put(number):
                await feed.wait_room()

    async def read() -> None:
        stream = ends.bridge.stream(write, buffer_max=8, silence_s=60)
        first = await anext(stream)
        for _ in range(20):
            await ends.bridge.call(trio.lowlevel.checkpoint)
        assert written <= len(first) + 8
        rest = [number async for batch in stream for number in batch]
        assert [*first, *rest] == list(range(100))
        stream.close()

    ends.run(read)


def test_silence_yields_an_empty_batch(ends: Ends) -> None:
    go = trio.Event()

    async def hesitate(feed: Feed[None, str]) -> None:
        await go.wait()
        feed.put("at last")

    async def read() -> None:
        stream = ends.bridge.stream(hesitate, buffer_max=8, silence_s=0.01)
        assert await anext(stream) == []
        assert await anext(stream) == []
        ends.bridge.run_in_trio(go.set)
        heard = [batch async for batch in stream if batch]
        assert heard == [["at last"]]
        stream.close()

    ends.run(read)


def test_an_error_comes_after_what_was_fed_before_it(ends: Ends) -> None:
    async def break_off(feed: Feed[None, int]) -> None:
        feed.put(1)
        feed.put(2)
        raise RemoteProtocolError("cut", code=Code.NODE_LOST)

    async def read() -> None:
        stream = ends.bridge.stream(break_off, buffer_max=8, silence_s=60)
        got: list[int] = []

        async def read_on() -> None:
            async for batch in stream:
                got.extend(batch)

        with pytest.raises(RemoteProtocolError, match="cut"):
            await read_on()
        assert got == [1, 2]
        stream.close()

    ends.run(read)


def test_closing_a_stream_early_cancels_its_call(ends: Ends) -> None:
    cancelled = trio.Event()

    async def never_end(feed: Feed[None, int]) -> None:
        feed.put(1)
        try:
            await trio.sleep_forever()
        finally:
            cancelled.set()

    async def read() -> None:
        stream = ends.bridge.stream(never_end, buffer_max=8, silence_s=60)
        assert await anext(stream) == [1]
        stream.close()
        await ends.bridge.call(cancelled.wait)

    ends.run(read)


def test_a_reader_that_never_has_to_wait_can_be_cancelled(ends: Ends) -> None:
    """A writer that is always ahead does not keep the loop from its other tasks."""
    fed, taken = threading.Semaphore(0), threading.Semaphore(0)
    cancelled = trio.Event()

    async def keep_ahead(feed: Feed[None, int]) -> None:
        try:
            for number in range(100):
                feed.put(number)
                fed.release()
                await trio.to_thread.run_sync(taken.acquire)
        finally:
            cancelled.set()

    async def give_up() -> None:
        stream = ends.bridge.stream(keep_ahead, buffer_max=8, silence_s=60)

        async def read_on() -> None:
            assert fed.acquire(timeout=WITHIN_S)
            async for _ in stream:
                taken.release()
                assert fed.acquire(timeout=WITHIN_S)

        task = asyncio.ensure_future(read_on())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        stream.close()
        taken.release()
        await ends.bridge.call(cancelled.wait)

    ends.run(give_up)
