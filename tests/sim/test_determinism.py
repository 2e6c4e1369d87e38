import hashlib
import random
import subprocess
import sys
import threading

import trio

from sim.determinism import run_deterministically


async def race(rng: random.Random) -> str:
    """Forty tasks that take turns and sleep at random; the order is the result."""
    order: list[int] = []

    async def runner(number: int) -> None:
        for _ in range(5):
            order.append(number)
            await trio.sleep(rng.choice([0, 0, 0.1, 10]))

    async with trio.open_nursery() as nursery:
        for number in range(40):
            nursery.start_soon(runner, number)
    return hashlib.sha256(repr((order, trio.current_time())).encode()).hexdigest()


def test_one_seed_gives_one_order_and_another_seed_another() -> None:
    first, again, other = (run_deterministically(race, seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_order_is_the_same_in_another_process() -> None:
    script = (
        "from sim.determinism import run_deterministically as run\n"
        "from tests.sim.test_determinism import race\n"
        "print(run(race, 5))"
    )
    command = [sys.executable, "-W", "ignore", "-c", script]
    printed = {
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(2)
    }
    assert printed == {run_deterministically(race, 5)}


def test_a_program_in_another_thread_does_not_disturb_the_order() -> None:
    undisturbed = run_deterministically(race, 7)
    is_up, leave = threading.Event(), threading.Event()

    async def disturb() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(_spin_until, leave)
            is_up.set()

    thread = threading.Thread(target=trio.run, args=(disturb,))
    thread.start()
    try:
        is_up.wait()
        assert run_deterministically(race, 7) == undisturbed
    finally:
        leave.set()
        thread.join()


async def _spin_until(leave: threading.Event) -> None:
    while not leave.is_set():
        await trio.lowlevel.checkpoint()
