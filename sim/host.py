"""A machine that runs one program: it can lose power and get it back.

Losing power is meant as SIGKILL on the program: connections break, nothing more is written or
logged, and what is left is the disk. While it is off, its tasks are unwound without a trace.
"""

from collections.abc import Awaitable
from typing import Protocol

import trio

from protocol.keys import SigningKey
from protocol.net.memory import MemoryNetwork
from sim.trace import Voice


class Process:
    """One run of the program. Whatever it does once `is_dead` must have no effect."""

    def __init__(self, name: str) -> None:
        self.voice = Voice(name)
        self.life = trio.CancelScope()
        self.is_dead = False


class Boot(Protocol):
    """Runs the program until it is cancelled."""

    def __call__(self, process: Process) -> Awaitable[None]: ...


class Host:
    """One machine. `run` starts the program whenever there is power."""

    def __init__(self, name: str, key: SigningKey, network: MemoryNetwork, boot: Boot) -> None:
        self.name = name
        self._key = key
        self._network = network
        self._boot = boot
        self._process: Process | None = None
        self._power = trio.Event()
        self._power.set()

    @property
    def is_up(self) -> bool:
        return self._process is not None

    def kill(self) -> None:
        """Killing the dead changes nothing."""
        process, self._process = self._process, None
        if process is not None:
            self._power = trio.Event()
            process.is_dead = process.voice.is_mute = True
            self._network.kill(self._key.peer_id)
            process.life.cancel()

    def revive(self) -> None:
        self._power.set()

    def switch_off(self) -> None:
        """Kill it, or do not start it, until it is revived."""
        self.kill()
        if self._power.is_set():
            self._power = trio.Event()

    async def run(self) -> None:
        while True:
            await self._power.wait()
            process = self._process = Process(self.name)
            with process.voice.speaking(), process.life:
                await self._boot(process)
