"""A connection between two parties of a `MemoryNetwork`, as each side sees it.

A partition silences its wires; silence for long enough ends it, as libp2p's pings would.
"""

from functools import partial
from typing import TYPE_CHECKING

import trio

from protocol.ids import PeerId
from protocol.net.errors import NetError
from protocol.net.memory_wire import MemoryStream, Wire
from protocol.net.transport import Origin

if TYPE_CHECKING:
    from protocol.net.memory_transport import MemoryTransport


class MemoryConnection:
    """One side of a connection between two transports, perhaps through a relay."""

    def __init__(
        self, owner: "MemoryTransport", other: "MemoryTransport", relay: PeerId | None = None
    ) -> None:
        self.owner = owner
        self.other = other
        self.relay = relay
        self.mate: MemoryConnection | None = None
        self.streams: dict[MemoryStream, None] = {}
        # Another took its place: it ends with its last stream.
        self.is_superseded = False
        # What holds the circuit under it, if there is one.
        self.circuit = trio.CancelScope()
        network = owner.network
        self.wire = Wire(
            network.rng,
            network.conditions(owner.peer_id, other.peer_id, relay),
            other.agenda,
            lost=partial(owner.drop, self, "too many packets were lost"),
        )
        self.memory = owner.buffers.open(
            other.peer_id, partial(owner.drop, self, "it held too much")
        )
        self._silences = 0
        self.refresh_silence()

    @property
    def is_whole(self) -> bool:
        """Neither side has ended."""
        return self.mate is not None and self.mate.mate is self

    def new_stream(self) -> MemoryStream:
        stream = MemoryStream(self.other.peer_id, self)
        self.streams[stream] = None
        return stream

    @property
    def origin(self) -> Origin:
        """Each party of this network is an address block of its own."""
        return Origin(self.relay or self.other.peer_id, self.relay)

    def forget(self, stream: MemoryStream) -> None:
        self.streams.pop(stream, None)
        self.end_if_useless()

    def end_if_useless(self) -> None:
        if self.is_superseded and not self.streams and self.mate is not None:
            self.owner.drop(self, "a direct connection took over")

    def refresh_conditions(self) -> None:
        network = self.owner.network
        self.wire.conditions = network.conditions(
            self.owner.peer_id, self.other.peer_id, self.relay
        )

    def refresh_silence(self) -> None:
        """Fall silent or speak again, as the partition is now."""
        silent = self.owner.network.is_silent(self.owner.peer_id, self.other.peer_id, self.relay)
        if silent and not self.wire.is_silent:
            self.owner.network.counts["wires_silenced"] += 1
            self.wire.silence()
            self._silences += 1
            self._watch()
        elif not silent and self.wire.is_silent:
            self.wire.resume()
            if self.mate is not None and self.mate.mate is None:
                # The other side ended while it could not say so. As on TCP, whatever is sent to it
                # now comes back as a reset.
                self.owner.agenda.add(
                    trio.current_time() + 2 * self.wire.delay_s(),
                    partial(self.owner.lose, self, "the peer had closed the connection"),
                )

    def _watch(self) -> None:
        """Both sides notice that pings are not answered: ours do not arrive, and the answers to the
        other side's do not. Each has a watch of its own, because either may be killed meanwhile."""
        due = trio.current_time() + self.owner.network.liveness_s
        self.owner.agenda.add(due, partial(self._give_up, self, self._silences))
        if self.mate is not None:
            self.other.agenda.add(due, partial(self._give_up, self.mate, self._silences))

    def _give_up(self, side: "MemoryConnection", silence: int) -> None:
        """One side gives the connection up, unless it has ended for it or our wire has spoken."""
        if side.mate is not None and self.wire.is_silent and self._silences == silence:
            side.owner.give_up(side)


class OpenAnswer:
    """What the other side says to a stream that we want to open."""

    def __init__(self, stream: MemoryStream) -> None:
        self._done = trio.Event()
        self._accepted = False
        self._error: NetError | None = None
        self._stream = stream
        stream.on_failure = self._done.set

    def accept(self) -> None:
        self._accepted = True
        self._done.set()

    def refuse(self, error: NetError) -> None:
        self._error = error
        self._done.set()

    async def wait(self) -> None:
        await self._done.wait()
        if self._error is not None:
            raise self._error
        if not self._accepted:
            self._stream.check()
