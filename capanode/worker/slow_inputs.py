"""Inputs that take long to read, on a thread beside the worker's loop: a format is compiled, or a
long text is tokenized, while the answers of others go on.

One at a time: what is read there is bounded by the engine, and leaves a core to the loop.
"""

import os
import select
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from capanode.engines.base import EngineInput
from capanode.worker.commands import Start

Read = Future[EngineInput]


class SlowInputs:
    """The inputs that are being read."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="reading")
        # Bounded: the node gives a worker no more than `jobs.JOBS_MAX` at once.
        self._open: dict[str, tuple[Start, Read]] = {}
        # Rings when one is ready, as the loop may be waiting for the node.
        self._bell = os.eventfd(0)

    @property
    def is_idle(self) -> bool:
        return not self._open

    def start(self, command: Start, read: Callable[[], EngineInput]) -> None:
        """`read` runs on the thread; what it raises is the job's failure."""
        future = self._thread.submit(read)
        self._open[command.job_id] = command, future
        future.add_done_callback(lambda _: os.eventfd_write(self._bell, 1))

    def cancel(self, job_id: str) -> None:
        """Drop what comes of it. Unknown ids are ignored."""
        _, future = self._open.pop(job_id, (None, None))
        if future is not None:
            future.cancel()

    def take(self) -> Iterator[tuple[Start, Read]]:
        """Those that are ready, in the order in which they came."""
        for command, future in list(self._open.values()):
            if future.done():
                del self._open[command.job_id]
                yield command, future

    def wait(self, channel: socket.socket) -> None:
        """Until one is ready or the node says something."""
        ready, _, _ = select.select([channel.fileno(), self._bell], [], [])
        if self._bell in ready:
            os.eventfd_read(self._bell)
