"""What a Yamux connection has to send and its socket has not taken yet.

Data waits its turn: streams look at `is_congested` before they queue more. Debts (acknowledgements,
credit, pongs) are queued at once, because the peer waits for them; a peer that demands them faster
than it reads them is hostile.
"""

from collections import deque

import trio
from trio.lowlevel import ParkingLot

from protocol.net.libp2p_yamux_stream import HEADER, WRITE_BYTES_MAX, ProtocolViolation

VERSION = 0

# What may wait for the socket before writers do. Enough to keep it busy, little enough that a ping
# behind it is answered at once.
QUEUE_BYTES_MAX = 256 * 1024
# What we owe on top of that.
DEBTS_BYTES_MAX = 1024 * 1024


class SendQueue:
    """Whole frames, the oldest first. Any task may `put`; one takes and writes."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._work = ParkingLot()
        self._uncongested = ParkingLot()

    def put(
        self, kind: int, flags: int, stream_id: int, length: int, data: memoryview | bytes = b""
    ) -> None:
        """Queue a frame. Never waits."""
        self._frames.append(HEADER.pack(VERSION, kind, flags, stream_id, length) + bytes(data))
        self._bytes += HEADER.size + len(data)
        self._work.unpark()

    def check_debts(self) -> None:
        """Raises ProtocolViolation if so much is owed that no more may be asked for."""
        if self._bytes > QUEUE_BYTES_MAX + DEBTS_BYTES_MAX:
            raise ProtocolViolation("the peer asks faster than it reads the answers")

    @property
    def is_congested(self) -> bool:
        return self._bytes >= QUEUE_BYTES_MAX

    async def wait_progress(self) -> None:
        """Until the socket has taken something, or `release`."""
        await self._uncongested.park()

    async def wait_batch(self) -> bytes:
        """The next write: whole frames, as many as one Noise message holds. `note_written` must
        follow once the socket has taken it."""
        while not self._frames:
            await self._work.park()
        size = 0
        count = 0
        for frame in self._frames:
            if size + len(frame) > WRITE_BYTES_MAX:
                break
            size += len(frame)
            count += 1
        if count == 1:
            return self._frames.popleft()
        return b"".join([self._frames.popleft() for _ in range(count)])

    def note_written(self, size: int) -> None:
        self._bytes -= size
        self._uncongested.unpark_all()

    async def flush(self, *, within_s: float) -> None:
        """Until all is written, but no longer than that."""
        with trio.move_on_after(within_s):
            while self._bytes:
                await self._uncongested.park()

    def release(self) -> None:
        """Nothing more will be written: let those go on who wait for room."""
        self._uncongested.unpark_all()
