"""What the node sends a worker: at once as far as the socket takes it, the rest as it drains."""

import socket
from collections import deque

import trio

from protocol.limits import MIB

# Inputs that wait for a busy engine; above it the node is busy too.
UNSENT_BYTES_MAX = 64 * MIB


class Outgoing:
    """The sending half of a worker's channel, which must not block."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._has_unsent = trio.Event()

    def has_room_for(self, payload_bytes: int) -> bool:
        return self._unsent_bytes + payload_bytes <= UNSENT_BYTES_MAX

    def send_nowait(self, frame: bytes) -> None:
        """Send without waiting; what does not fit at once follows while `run` runs."""
        view = memoryview(frame)
        if not self._unsent:
            view = view[self.send_some(view) :]
        if view:
            self._unsent.append(view)
            self._unsent_bytes += len(view)
            self._has_unsent.set()

    def send_some(self, view: memoryview) -> int:
        """How much the socket took."""
        try:
            return self._channel.send(view)
        except BlockingIOError:
            return 0
        except OSError:
            # The worker is gone; the reader sees it too and says why.
            return len(view)

    async def run(self) -> None:
        while True:
            await self._has_unsent.wait()
            while self._unsent:
                await trio.lowlevel.wait_writable(self._channel)
                view = self._unsent[0]
                sent = self.send_some(view)
                self._unsent_bytes -= sent
                if sent == len(view):
                    self._unsent.popleft()
                else:
                    self._unsent[0] = view[sent:]
            self._has_unsent = trio.Event()
