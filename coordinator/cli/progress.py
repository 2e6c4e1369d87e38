"""What a person at a terminal sees while nothing else happens."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

# Most answers begin sooner, and a line that flashes up only disturbs.
_SAY_AFTER_S = 1.0
_CLEAR_LINE = "\r\x1b[K"


@asynccontextmanager
async def show_waiting(what: str) -> AsyncIterator[None]:
    """Count the seconds on a line of stderr that is gone afterwards. Nothing where no person
    looks."""
    if not sys.stderr.isatty():
        yield
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_count, what)
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()


async def _count(what: str) -> None:
    started_at = trio.current_time()
    try:
        while True:
            await trio.sleep(_SAY_AFTER_S)
            waited_s = trio.current_time() - started_at
            print(f"\r{what} {waited_s:.0f} s", end="", file=sys.stderr, flush=True)
    finally:
        if trio.current_time() > started_at + _SAY_AFTER_S:
            print(_CLEAR_LINE, end="", file=sys.stderr, flush=True)
