import time

import trio

from protocol.net.clock import VIRTUAL_EPOCH_MS, SystemClock, VirtualClock
from tests.protocol.net.virtual import virtual_time


def test_system_clock_is_the_machines() -> None:
    assert abs(SystemClock().now_ms() - time.time() * 1000) < 1000


@virtual_time
async def test_virtual_clock_starts_at_its_epoch_and_follows_trio() -> None:
    clock = VirtualClock()
    assert clock.now_ms() == VIRTUAL_EPOCH_MS
    for _ in range(10):
        await trio.sleep(0.1)
    assert clock.now_ms() == VIRTUAL_EPOCH_MS + 1000
    await trio.sleep(86_400)
    assert clock.now_ms() == VIRTUAL_EPOCH_MS + 86_401_000
