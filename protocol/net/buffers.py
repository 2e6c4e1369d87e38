"""How much memory peers may make this process hold, and whose it is.

Whatever a peer's bytes fill (a stream's window, half a frame, frames that wait for a consumer,
answers that it does not read) is charged to its connection. The connections of one address block
share; when the process is at its bound, the fullest connection of the fullest block is dropped.
"""

from collections.abc import Callable

from protocol.limits import KIB, MIB
from protocol.net.pace import WorkPace
from protocol.net.shares import Shares

# All connections of a process together: sixty payloads of the largest size under way.
BUFFER_BYTES_MAX = 512 * MIB
# One connection: what one full link may keep and what may wait for its writer, with room.
CONNECTION_BYTES_MAX = 128 * MIB

# The books are kept in steps, so that a frame of a few bytes costs an addition only.
_STEP_BYTES = 64 * KIB


class Holding:
    """What one connection holds, and how fast it may make us work. `drop` ends the connection."""

    __slots__ = ("_booked", "_buffers", "_drop", "held_bytes", "pace")

    def __init__(self, buffers: "Buffers", drop: Callable[[], None]) -> None:
        self.held_bytes = 0
        self.pace = WorkPace()
        self._booked = 0
        self._buffers = buffers
        self._drop = drop

    def change(self, by: int) -> None:
        """Hold so many bytes more, or less if negative. May drop connections, also this one."""
        self.held_bytes += by
        if not self._booked - 2 * _STEP_BYTES <= self.held_bytes <= self._booked:
            self._booked = -(-self.held_bytes // _STEP_BYTES) * _STEP_BYTES
            self._buffers.book(self, self._booked)

    def close(self) -> None:
        """The connection is over, and what it held is free."""
        self._buffers.forget(self)

    def drop(self) -> None:
        self._drop()


class Buffers:
    """The holdings of all connections of one transport."""

    def __init__(
        self,
        *,
        bytes_max: int = BUFFER_BYTES_MAX,
        connection_bytes_max: int = CONNECTION_BYTES_MAX,
    ) -> None:
        self._connection_bytes_max = connection_bytes_max
        self._shares: Shares[Holding] = Shares(bytes_max, rank=lambda each: -each.held_bytes)
        self._open: dict[Holding, str] = {}
        self.dropped = 0

    @property
    def held_bytes(self) -> int:
        """In steps, rounded up."""
        return self._shares.size

    def open(self, block: str, drop: Callable[[], None]) -> Holding:
        holding = Holding(self, drop)
        self._open[holding] = block
        self._shares.add(holding, block, 0)
        return holding

    def book(self, holding: Holding, size: int) -> None:
        """For holdings: this many bytes are held now, in steps."""
        if holding not in self._open:
            return
        self._shares.resize(holding, size)
        if size > self._connection_bytes_max:
            self._end(holding)
        while self._shares.size > self._shares.size_max:
            fullest = self._shares.heaviest()
            if fullest is None:
                return
            self._end(fullest)

    def forget(self, holding: Holding) -> None:
        self._open.pop(holding, None)
        self._shares.remove(holding)

    def _end(self, holding: Holding) -> None:
        self.forget(holding)
        self.dropped += 1
        holding.drop()
