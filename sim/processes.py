"""Child processes of a local network: output goes to a file, and they stop in good order."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from protocol.errors import CapaError

# A node drains its jobs and a coordinator closes its books within seconds.
STOP_WITHIN_S = 15.0
# What a failed start is explained with.
LOG_TAIL_LINES = 15


class ProcessFailed(CapaError):
    """A child process ended by itself; the message has the end of its log."""


class ChildProcess:
    """One program with a name. `run` is its life: it is stopped when `run` is cancelled."""

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        *,
        log_path: Path,
        descriptors: Sequence[int] = (),
        python: str = sys.executable,
    ) -> None:
        """`descriptors` are open files of ours that the program inherits; `python` may be that of
        another environment."""
        self.name = name
        self.log_path = log_path
        self._command = [python, "-m", module, *arguments]
        self._descriptors = tuple(descriptors)
        self._process: trio.Process | None = None
        self._was_killed = False

    @property
    def pid(self) -> int:
        assert self._process is not None, "the process is not running"
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Start, and wait. Raises ProcessFailed if it ends before we are cancelled, unless it was
        killed from here; then it may be run again."""
        self._was_killed = False
        with self.log_path.open("ab") as output:
            # A session of its own: Ctrl-C at the terminal reaches us, and we stop in order.
            self._process = await trio.lowlevel.open_process(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=self._descriptors,
                env=_environment(os.environ),
            )
        task_status.started()
        try:
            code = await self._process.wait()
            if self._was_killed:
                return
            raise ProcessFailed(f"{self.name} ended with code {code}:\n{self.log_tail()}")
        finally:
            with trio.CancelScope(shield=True):
                await self._stop(self._process)

    async def kill(self) -> None:
        """As a power cut would: no goodbye. Returns when its ports and locks are free again."""
        assert self._process is not None, "the process is not running"
        self._was_killed = True
        self._process.kill()
        await self._process.wait()

    def log_tail(self) -> str:
        lines = self.log_path.read_text(errors="replace").splitlines()
        return "\n".join(lines[-LOG_TAIL_LINES:])

    async def _stop(self, process: trio.Process) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGINT)
            with trio.move_on_after(STOP_WITHIN_S):
                await process.wait()
        if process.poll() is None:
            process.kill()
            await process.wait()


def _environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """Ours, without settings that the person at the terminal made for programs of their own. The
    network is on this machine, so its offers lead to loopback."""
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith(("CAPANODE_", "COORDINATOR_"))
    }
    return kept | dict.fromkeys(("CAPANODE_DIAL_PRIVATE", "COORDINATOR_DIAL_PRIVATE"), "loopback")
