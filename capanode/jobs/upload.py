"""Receives a job's payload, at a pace that keeps a slow sender from holding a channel."""

from collections.abc import Callable
from contextlib import suppress

import trio

from protocol.errors import Code, RemoteProtocolError
from protocol.framing import Frame
from protocol.limits import KIB, LEASE_OPEN_WITHIN_MS
from protocol.net.channels import Channel
from protocol.node_session import CancelRequested, NodeJob, Opened

# An upload may pause this long in all, and has to be this fast beside that.
UPLOAD_PAUSE_S = 5.0
UPLOAD_BYTES_PER_S_MIN = 128 * KIB


async def receive_payload(
    channel: Channel, job: NodeJob, *, on_frame: Callable[[bool, float], None]
) -> bytes:
    """The whole payload. `on_frame` hears of each frame that the session has taken, whether the
    payload is whole with it, and when (in trio's time) more has to come. Raises
    RemoteProtocolError, NetError, and what `on_frame` raises."""
    upload = _Upload(job, on_frame)
    # The frame that opened the channel is here, and mostly brings all: no deadline is needed, and
    # a scope costs as much as a check of a signature.
    with suppress(trio.WouldBlock):
        payload = upload.take(channel.receive_nowait())
        if payload is not None:
            return payload
    with trio.move_on_at(upload.due_at) as scope:
        while True:
            payload = upload.take(await channel.receive())
            if payload is not None:
                return payload
            scope.deadline = upload.due_at
    raise RemoteProtocolError("the payload did not arrive", code=Code.DEADLINE_EXCEEDED)


class _Upload:
    """A payload on its way. `due_at` is when more of it has to come, in trio's time."""

    def __init__(self, job: NodeJob, on_frame: Callable[[bool, float], None]) -> None:
        self._job = job
        self._on_frame = on_frame
        self._opened_at = trio.current_time()
        self._last_at = self._opened_at + LEASE_OPEN_WITHIN_MS / 1000
        self._arrived_bytes = 0
        self.due_at = self._last_at

    def take(self, frame: Frame) -> bytes | None:
        """The payload, if it is whole with this frame. Raises RemoteProtocolError, and what
        `on_frame` raises."""
        event = self._job.receive(frame.type, frame.body)
        self._arrived_bytes += len(frame.body)
        due_s = UPLOAD_PAUSE_S + self._arrived_bytes / UPLOAD_BYTES_PER_S_MIN
        self.due_at = min(self._last_at, self._opened_at + due_s)
        self._on_frame(isinstance(event, Opened), self.due_at)
        if isinstance(event, CancelRequested):
            raise RemoteProtocolError("the client cancelled", code=Code.CANCELLED)
        return event.payload if isinstance(event, Opened) else None
