"""What can go wrong on the network, by type. A peer's *bytes* being wrong is RemoteProtocolError.

None of these accuses a peer: networks fail. Callers retry on another address or another peer.
"""

from protocol.errors import CapaError


class NetError(CapaError):
    """Base of every network failure."""


class AddressInvalid(NetError):
    """An address that this transport cannot use; the message says what is wrong with it."""


class AddressForbidden(AddressInvalid):
    """An address that we do not dial: it is not public, and the operator does not allow it."""


class AddressInUse(NetError):
    """Another program listens there already. Stop the other program or choose another port."""


class ConnectFailed(NetError):
    """No connection to the peer: refused, unreachable, handshake failed, or never dialled."""


class PeerMismatch(ConnectFailed):
    """The peer that answered at the address does not have the key that the address names."""


class NetTimeout(NetError):
    """The deadline of a network operation passed."""


class ProtocolUnsupported(NetError):
    """The peer is there but does not speak the protocol that was asked for."""


class StreamClosed(NetError):
    """The stream is over: closed here, or its connection died. What was sent may be lost."""


class StreamReset(StreamClosed):
    """One side dropped the stream on purpose without ending it."""


class Backpressure(NetError):
    """A bounded queue is full: the other side, or its consumer, is slower than the producer."""
