"""The worker's loop in a thread, on a socket pair: the same code without a process or a sandbox."""

import socket
import threading
import time
from typing import Any

from capanode.engines.base import Engine
from capanode.worker.commands import Command, encode_command
from capanode.worker.frames import FrameBuffer
from capanode.worker.main import NodeSocket, serve
from capanode.worker.reports import parse_report
from capanode.worker.stream_windows import StreamWindows


class WorkerThread:
    """The node's end of the channel, and the worker's loop in a thread behind it."""

    def __init__(self, engine: Engine) -> None:
        self.socket, self._theirs = socket.socketpair()
        self.socket.settimeout(10)
        self._buffer = FrameBuffer()
        self._channel = NodeSocket(self._theirs)
        self._thread = threading.Thread(target=self._serve, args=(engine,), daemon=True)
        self.failure: BaseException | None = None
        self.frames = 0

    def _serve(self, engine: Engine) -> None:
        try:
            windows = StreamWindows.of_engine(engine.info, time.monotonic)
            serve(self._channel, engine, windows)
        except BaseException as error:
            self.failure = error

    def start(self, *commands: Command) -> None:
        """Begin with these commands waiting, so that the first look finds them all."""
        self.tell(*commands)
        self._thread.start()

    def tell(self, *commands: Command) -> None:
        self.socket.sendall(b"".join(map(encode_command, commands)))

    def hear(self, count: int) -> list[Any]:
        reports: list[Any] = []
        while len(reports) < count:
            data = self.socket.recv(65_536)
            assert data, "the worker went away"
            for header, blob in self._buffer.feed(data):
                self.frames += 1
                report = parse_report(header, blob)
                reports += report if isinstance(report, list) else [report]
        return reports

    def join(self) -> None:
        self._thread.join(10)
        assert not self._thread.is_alive()

    def close(self) -> None:
        self.socket.close()
        if self._thread.ident is not None:
            self.join()
        self._theirs.close()
