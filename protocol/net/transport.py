"""What the rest of the program may ask of a network. Two implementations keep this contract:
`libp2p` (TCP, Noise, Yamux, gossipsub) and `memory` (a whole network in one process, for tests and
simulation). `tests/protocol/net/contract.py` is the contract's other half: run against both.

Rules that both keep:

- A stream is ordered and reliable until it ends. `b""` means that the peer ended its side in good
  order; everything else is StreamClosed. Neither proves that the peer *finished*: protocols carry
  their own end marker.
- Cancelling any call leaves the stream usable, except `send_all`, which may have sent a part.
- A handler's exception ends its stream, never the transport. When it returns, its stream is closed.
- Gossip is delivered at most once per message in normal operation, in no particular order, and
  never to the publisher itself.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol

import trio

from protocol.ids import PeerId
from protocol.net.buffers import Holding

# Offers are at most 16 KiB; libp2p drops over 1 MiB without a word, which is hard to find.
GOSSIP_BYTES_MAX = 64 * 1024

# One read takes what is there up to this: as much as one Noise message or Yamux frame carries.
RECEIVE_BYTES_MAX = 64 * 1024

# Streams open at once on one connection, in both directions together. Stock py-libp2p blocks in
# silence at the 257th outbound stream, so a peer of that kind must never get near it.
STREAMS_PER_CONNECTION_MAX = 200


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a connection comes from: the address block of its other end, by which scarce places are
    shared out, and the relay that it passes through. A relay's own block stands for those behind
    it."""

    block: str
    relay: PeerId | None = None


class Stream(Protocol):
    """A byte stream to one peer, both ways. One task may send while another receives."""

    @property
    def peer(self) -> PeerId:
        """Who is on the other side, proven by the handshake."""
        ...

    @property
    def origin(self) -> Origin:
        """What its connection comes through."""
        ...

    @property
    def is_superseded(self) -> bool:
        """A new stream to the peer would use another connection: long-lived ones should move."""
        ...

    @property
    def memory(self) -> Holding:
        """What the peer makes us hold is charged here; too much of it ends the connection."""
        ...

    async def send_all(self, data: bytes) -> None:
        """Raises StreamClosed. Waits while the peer's window is full."""
        ...

    def send_nowait(self, data: bytes) -> bool:
        """Queue all of it for the peer, if there is room for it now. False if none of it was taken:
        `send_all` then waits for room, or says what is wrong."""
        ...

    async def receive_some(self, max_bytes: int = RECEIVE_BYTES_MAX) -> bytes:
        """At least one byte, or b"" when the peer ended its side. Raises StreamClosed."""
        ...

    async def send_eof(self) -> None:
        """End our side; the peer can go on sending."""
        ...

    async def aclose(self) -> None:
        """End our side and stop reading. What the peer still sends is refused."""
        ...

    async def reset(self) -> None:
        """Drop the stream in both directions, now. After `aclose` it does nothing: last words that
        are still under way shall arrive."""
        ...


Handler = Callable[[Stream], Awaitable[None]]
# Judges a message by its bytes and the neighbour that passed it on.
Validator = Callable[[bytes, PeerId], bool]


@dataclass(frozen=True, slots=True)
class Gossip:
    """A validated message on a topic. `via` is the neighbour that passed it on, not its author."""

    topic: str
    data: bytes
    via: PeerId


@dataclass(frozen=True, slots=True)
class TransportStatistics:
    """Counters since start, and gauges. For metrics and tests."""

    connections: int = 0
    streams_opened: int = 0
    streams_accepted: int = 0
    handlers_failed: int = 0
    peers_timed_out: int = 0
    # Strangers and connections that gave their place to others, and dials that were not allowed.
    strangers_evicted: int = 0
    strangers_refused: int = 0
    connections_evicted: int = 0
    dials_forbidden: int = 0
    # As a relay: who holds a place here, what runs through us, and what was refused.
    reservations: int = 0
    circuits: int = 0
    circuits_refused: int = 0
    relayed_bytes: int = 0
    # Connections through a relay that a direct one took over from.
    circuits_upgraded: int = 0
    # What peers make us hold, and connections that were dropped because they held too much.
    buffered_bytes: int = 0
    buffers_dropped: int = 0
    gossip_received: int = 0
    gossip_rejected: int = 0
    gossip_dropped: int = 0


class Reservation(Protocol):
    """A place at a relay, under whose address others can reach us. It is kept until `release`: what
    is lost is reserved again, and a relay that refuses or is gone is asked again, ever more rarely.
    """

    @property
    def relay(self) -> PeerId: ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """/…/p2p/RELAY/p2p-circuit/p2p/US while the place is held; else empty."""
        ...

    @property
    def failure(self) -> str:
        """Why the place is not held; empty while it is, and before the first answer."""
        ...

    def release(self) -> None:
        """Stop keeping the place. The relay forgets it when it expires or we disconnect."""
        ...


class Transport(Protocol):
    """One party's presence on a network."""

    @property
    def peer_id(self) -> PeerId: ...

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where others can dial us: full multiaddrs that end in /p2p/ID. Empty before `run`."""
        ...

    @property
    def announced(self) -> tuple[str, ...]:
        """What to tell strangers: those of `addresses` that they would dial, and those of the
        places that we hold at relays."""
        ...

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen and serve until cancelled. `started` when addresses are known.

        Raises AddressInUse, AddressInvalid.
        """
        ...

    def handle(self, protocol_id: str, handler: Handler) -> None:
        """Serve streams of a protocol. Before `run`; a protocol has one handler."""
        ...

    async def connect(self, address: str, *, timeout_s: float) -> PeerId:
        """Make sure of a connection to the peer that the address names, and return its id.

        An address /…/p2p/RELAY/p2p-circuit/p2p/PEER leads through a relay; any connection to the
        peer will do then, and a direct one takes over from it when one is made: new streams use
        it, and streams that are open finish where they are. Another address asks for a direct one.

        Raises AddressInvalid (AddressForbidden), ConnectFailed, PeerMismatch, NetTimeout.
        """
        ...

    async def probe(self, address: str, *, timeout_s: float) -> None:
        """Dial the peer that the address names, although we may be connected to it: make sure that
        it is there, and hang up. No connection is made or changed. Raises as `connect`."""
        ...

    def observed_host(self, peer: PeerId) -> str:
        """The host that a connected peer's packets come from, as an IP address; empty if it is not
        connected, or not known."""
        ...

    def refresh_addresses(self) -> bool:
        """Look at this machine's network again: whether `addresses` are others than before.
        Connections from an address that is gone are dropped."""
        ...

    def relay_of(self, peer: PeerId) -> PeerId | None:
        """The relay that new streams to a peer pass through; None if they go direct, or nowhere."""
        ...

    def reserve(
        self, relay_address: str, on_change: Callable[[], None] = lambda: None
    ) -> Reservation:
        """Keep a place at a relay for as long as we run, or until it is released. While running.
        `on_change` is called when the place was won or lost, or could not be had.

        Raises AddressInvalid, ConnectFailed (not running).
        """
        ...

    async def open_stream(self, peer: PeerId, protocol_id: str, *, timeout_s: float) -> Stream:
        """A new stream on an existing connection.

        Raises ConnectFailed (not connected), ProtocolUnsupported, Backpressure, NetTimeout.
        """
        ...

    async def disconnect(self, peer: PeerId) -> None:
        """Close every connection to the peer; nothing happens if there is none."""
        ...

    async def wait_disconnected(self, peer: PeerId) -> None:
        """Until no connection to the peer works."""
        ...

    def connected_peers(self) -> frozenset[PeerId]: ...

    async def ping(self, peer: PeerId, *, timeout_s: float) -> float:
        """One round trip in seconds. Raises ConnectFailed, NetTimeout."""
        ...

    def subscribe(
        self, topic: str, validate: Validator, *, queue_max: int
    ) -> trio.MemoryReceiveChannel[Gossip]:
        """Join a topic, before or during `run`; one subscription per topic.

        `validate` decides at once and without waiting: what it refuses is neither delivered nor
        passed on. With `queue_max` messages waiting, newer ones are dropped and counted. Closing
        the channel leaves the topic.
        """
        ...

    async def publish(self, topic: str, data: bytes) -> None:
        """Send to the topic's subscribers, best effort; we need not be one.

        Raises LocalProtocolError if the data is larger than gossip may carry.
        """
        ...

    def statistics(self) -> TransportStatistics: ...
