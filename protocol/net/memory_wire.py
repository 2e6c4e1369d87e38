"""Bytes on their way between two transports of one process: delay, order, loss, silence.

A `Wire` is one direction of one connection. What is put on it becomes an event in the receiving
transport's agenda, in order, as on TCP: loss is delay, and too much loss is the end of the
connection. Nothing here reads a clock or a random source that it was not given.
"""

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from itertools import count
from operator import methodcaller
from typing import Protocol

import trio
from trio.lowlevel import ParkingLot

from protocol.ids import PeerId
from protocol.net.buffers import Holding
from protocol.net.errors import NetError, StreamClosed, StreamReset
from protocol.net.transport import RECEIVE_BYTES_MAX, Origin

# Yamux's own first window: a writer waits when this much has not been read yet.
WINDOW_BYTES = 256 * 1024

# Linux gives up a connection much later, our health check earlier; so many losses in a row with
# doubling pauses come to about as much silence as that check forgives.
LOSSES_MAX = 5
RETRANSMIT_S = 0.2

Action = Callable[[], None]


@dataclass(frozen=True, slots=True)
class Conditions:
    """The network between two parties, one way. Chances are 0..1."""

    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    # Gossip takes detours of its own: up to this much later, and sometimes twice.
    gossip_delay_s: float = 0.0
    gossip_duplicates: float = 0.0

    def followed_by(self, rest: "Conditions") -> "Conditions":
        """Of a way that leads through both. Gossip takes no such way."""
        return Conditions(
            latency_s=self.latency_s + rest.latency_s,
            jitter_s=self.jitter_s + rest.jitter_s,
            loss=1 - (1 - self.loss) * (1 - rest.loss),
        )


class Agenda:
    """What will happen at one transport, by time. One task carries it out."""

    def __init__(self, numbers: "count[int]") -> None:
        self._numbers = numbers
        self._events: list[tuple[float, int, Action]] = []
        self._changed = ParkingLot()

    def add(self, due: float, action: Action) -> None:
        # The number breaks ties in the order of adding, so that a seed replays.
        heapq.heappush(self._events, (due, next(self._numbers), action))
        self._changed.unpark()

    async def run(self) -> None:
        while True:
            if not self._events:
                await self._changed.park()
                continue
            due = self._events[0][0]
            if due <= trio.current_time():
                heapq.heappop(self._events)[2]()
                continue
            with trio.move_on_at(due):
                await self._changed.park()


class Wire:
    """One direction of a connection."""

    def __init__(
        self, rng: random.Random, conditions: Conditions, agenda: Agenda, lost: Action
    ) -> None:
        self.conditions = conditions
        self._rng = rng
        self._agenda = agenda
        self._lost = lost
        self._last_due = 0.0
        self._held: list[Action] | None = None

    def put(self, action: Action, *, surely: bool = False) -> None:
        """`action` will happen at the other side, or (unless `surely`) the wire is lost."""
        if self._held is not None:
            self._held.append(action)
            return
        delay_s = self.delay_s()
        losses = 0
        while not surely and self.conditions.loss and self._rng.random() < self.conditions.loss:
            delay_s += RETRANSMIT_S * 2**losses
            losses += 1
            if losses > LOSSES_MAX:
                self._lost()
                return
        # In order: nothing overtakes what was sent before it.
        self._last_due = max(self._last_due, trio.current_time() + delay_s)
        self._agenda.add(self._last_due, action)

    def delay_s(self) -> float:
        """One sample of how long a packet takes."""
        conditions = self.conditions
        jitter_s = self._rng.uniform(0, conditions.jitter_s) if conditions.jitter_s else 0.0
        return conditions.latency_s + jitter_s

    @property
    def is_silent(self) -> bool:
        return self._held is not None

    def silence(self) -> None:
        """From now on nothing arrives, until `resume`."""
        if self._held is None:
            self._held = []

    def resume(self) -> None:
        """What was sent meanwhile is sent again."""
        held, self._held = self._held, None
        for action in held or ():
            self.put(action)


class Carrier(Protocol):
    """What a stream needs of its connection."""

    wire: Wire
    memory: Holding
    is_superseded: bool

    @property
    def origin(self) -> Origin: ...

    def forget(self, stream: "MemoryStream") -> None: ...


class MemoryStream:
    """One side of a stream; `mate` is the other side."""

    def __init__(self, peer: PeerId, carrier: Carrier) -> None:
        self.mate: MemoryStream | None = None
        # A caller waits for the stream to be opened and has to know when it cannot be.
        self.on_failure: Action | None = None
        self._peer = peer
        self._carrier = carrier
        self._wire = carrier.wire
        self._buffer = bytearray()
        self._credit = WINDOW_BYTES
        self._arrived = ParkingLot()
        self._room = ParkingLot()
        self._failure: NetError | None = None
        self._eof_received = False
        self._eof_sent = False
        self._closed = False

    @property
    def peer(self) -> PeerId:
        return self._peer

    @property
    def origin(self) -> Origin:
        return self._carrier.origin

    @property
    def is_superseded(self) -> bool:
        return self._carrier.is_superseded

    @property
    def memory(self) -> Holding:
        return self._carrier.memory

    async def send_all(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        rest = memoryview(data)
        while rest:
            if self._failure is not None or self._eof_sent:
                raise self._error()
            if not self._credit:
                await self._room.park()
                continue
            piece = bytes(rest[: min(self._credit, RECEIVE_BYTES_MAX)])
            rest = rest[len(piece) :]
            self._credit -= len(piece)
            self._tell(methodcaller("on_data", piece))

    def send_nowait(self, data: bytes) -> bool:
        """Every sender gives others their turn, so that a simulation is fair."""
        return False

    async def receive_some(self, max_bytes: int = RECEIVE_BYTES_MAX) -> bytes:
        await trio.lowlevel.checkpoint()
        while not self._buffer:
            if self._closed or (self._failure is not None and not self._eof_received):
                raise self._error()
            if self._eof_received:
                return b""
            await self._arrived.park()
        data = bytes(self._buffer[:max_bytes])
        del self._buffer[:max_bytes]
        self._tell(methodcaller("on_credit", len(data)))
        return data

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()
        self._send_eof()

    async def aclose(self) -> None:
        await trio.lowlevel.checkpoint()
        self._send_eof()
        self._closed = True
        self._buffer.clear()
        self._arrived.unpark_all()
        self._settle()

    async def reset(self) -> None:
        await trio.lowlevel.checkpoint()
        if self._failure is None and not self._closed:
            self._tell(MemoryStream.on_reset)
            self._fail(StreamReset("the stream was reset here"))

    # What the other side does, as it arrives.

    def on_data(self, piece: bytes) -> None:
        if self._failure is not None:
            return
        if self._closed:
            # As TCP does: data for no stream is answered with a reset.
            self._tell(MemoryStream.on_reset)
            self._fail(StreamReset("the peer sent to a closed stream"))
            return
        self._buffer += piece
        self._arrived.unpark()

    def on_credit(self, size: int) -> None:
        self._credit += size
        self._room.unpark_all()

    def on_eof(self) -> None:
        self._eof_received = True
        self._arrived.unpark_all()
        self._settle()

    def on_reset(self) -> None:
        if self._failure is None:
            self._buffer.clear()
            self._eof_received = False
            self._fail(StreamReset(f"{self._peer} reset the stream"))

    def on_connection_lost(self, reason: str) -> None:
        """What has arrived can still be read; then the failure is told."""
        if self._failure is None:
            self._fail(StreamClosed(reason))

    def _tell(self, what: Callable[["MemoryStream"], None]) -> None:
        if self._failure is None:
            self._wire.put(partial(self._arrive, what))

    def _arrive(self, what: Callable[["MemoryStream"], None]) -> None:
        # The mate is looked up on arrival: by then the opening, sent earlier, has made it.
        if self.mate is not None:
            what(self.mate)

    def _send_eof(self) -> None:
        if not self._eof_sent and self._failure is None:
            self._tell(MemoryStream.on_eof)
        self._eof_sent = True
        self._settle()

    def check(self) -> None:
        """Raises what the stream failed with."""
        if self._failure is not None:
            raise self._error()

    def _fail(self, failure: NetError) -> None:
        self._failure = failure
        if self.on_failure is not None:
            self.on_failure()
        self._arrived.unpark_all()
        self._room.unpark_all()
        self._settle()

    def _settle(self) -> None:
        """Leave the connection once neither side has anything more to say."""
        if self._failure is not None or (self._eof_sent and (self._eof_received or self._closed)):
            self._carrier.forget(self)

    def _error(self) -> NetError:
        if self._failure is not None:
            return type(self._failure)(*self._failure.args)
        return StreamClosed("the stream was closed here")
