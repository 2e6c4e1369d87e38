"""Receives a job's payload, at a pace that keeps a slow sender from holding a channel."""

from collections.abc import Callable

import trio

from protocol.errors import Code, RemoteProtocolError
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
    opened_at = trio.current_time()
    arrived_bytes = 0
    with trio.move_on_after(LEASE_OPEN_WITHIN_MS / 1000) as scope:
        last_at = scope.deadline
        while True:
            frame = await channel.receive()
            event = job.receive(frame.type, frame.body)
            arrived_bytes += len(frame.body)
            due_s = UPLOAD_PAUSE_S + arrived_bytes / UPLOAD_BYTES_PER_S_MIN
            scope.deadline = min(last_at, opened_at + due_s)
            on_frame(isinstance(event, Opened), scope.deadline)
            if isinstance(event, Opened):
                return event.payload
            if isinstance(event, CancelRequested):
                raise RemoteProtocolError("the client cancelled", code=Code.CANCELLED)
    raise RemoteProtocolError("the payload did not arrive", code=Code.DEADLINE_EXCEEDED)
