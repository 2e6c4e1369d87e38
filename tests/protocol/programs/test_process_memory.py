import ctypes
import gc

import pytest
import trio
from trio.testing import MockClock

from protocol.programs.process_memory import (
    TRIM_EVERY_S,
    settle_garbage_collection,
    trim_heap_forever,
)


def test_what_start_up_made_is_exempt_from_collection() -> None:
    made = [{"number": number} for number in range(100)]
    before = gc.get_freeze_count()
    settle_garbage_collection()
    assert gc.get_freeze_count() >= before + len(made)


class Glibc:
    def __init__(self) -> None:
        self.trims = 0

    def malloc_trim(self, kept_bytes: int) -> None:
        assert kept_bytes == 0
        self.trims += 1


async def test_the_heap_is_trimmed_every_minute(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    libc = Glibc()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    with trio.move_on_after(3.5 * TRIM_EVERY_S):
        await trim_heap_forever()
    assert libc.trims == 3


async def test_another_c_library_is_let_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    await trim_heap_forever()
