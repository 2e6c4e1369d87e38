"""Multiaddrs as text: a transport's own part, then the identity of the peer that is there."""

from protocol.errors import RemoteProtocolError
from protocol.ids import PeerId, parse_peer_id
from protocol.limits import ADDRESS_CHARS_MAX
from protocol.net.errors import AddressInvalid

# Names that libp2p resolves or takes as they are.
HOST_KINDS = ("ip4", "ip6", "dns", "dns4", "dns6")
PORT_MAX = 65_535

# Between a relay's address and the peer that is reached through it.
CIRCUIT = "/p2p-circuit"


def split_peer_id(address: str) -> tuple[str, PeerId]:
    """`/…/p2p/ID` as `/…` and the ID. Raises AddressInvalid.

    An address without an identity is useless to us: any host could answer at it.
    """
    place, separator, text = address.rpartition("/p2p/")
    if not separator or not place or len(address) > ADDRESS_CHARS_MAX:
        raise AddressInvalid(f"{address[:ADDRESS_CHARS_MAX]!r} does not end in /p2p/ID")
    try:
        return place, parse_peer_id(text)
    except RemoteProtocolError as error:
        raise AddressInvalid(f"{address!r}: {error}") from None


def host_of(address: str) -> str:
    """What a multiaddr begins with: an IP address or a name, or the kind of network if that knows
    no hosts."""
    kind, _, rest = address.removeprefix("/").partition("/")
    return rest.partition("/")[0] if kind in HOST_KINDS else kind


def split_circuit(address: str) -> tuple[str, PeerId] | None:
    """`/…/p2p/RELAY/p2p-circuit/p2p/PEER` as the relay's address and the peer; None if the address
    does not lead through a relay. Raises AddressInvalid if it leads through two, or to none."""
    place, peer = split_peer_id(address)
    if CIRCUIT not in place:
        return None
    relay_address, _, rest = place.partition(CIRCUIT)
    if rest:
        raise AddressInvalid(f"{address!r} leads through more than one relay")
    split_peer_id(relay_address)
    return relay_address, peer


def circuit_address(relay_address: str, peer: PeerId) -> str:
    """Where `peer` is reached through the relay at `relay_address`."""
    return f"{relay_address}{CIRCUIT}/p2p/{peer}"


def check_tcp(place: str) -> None:
    """Raises AddressInvalid unless `place` is /ip4|ip6|dns…/HOST/tcp/PORT and nothing more.

    QUIC and WebSocket have addresses too, but measured at a thirtieth of TCP's throughput the first
    is no use here, and the second needs a listener that we do not run.
    """
    parts = place.split("/")
    if len(parts) != 5 or parts[0] or parts[1] not in HOST_KINDS or parts[3] != "tcp":
        raise AddressInvalid(f"{place!r} is not /ip4/HOST/tcp/PORT (or ip6, dns4, dns6)")
    if not parts[2]:
        raise AddressInvalid(f"{place!r} names no host")
    parse_port(parts[4], place)


def parse_port(text: str, address: str) -> int:
    """Raises AddressInvalid unless `text` is a decimal number that a port can have."""
    if text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= PORT_MAX:
        return int(text)
    raise AddressInvalid(f"{address!r} has no port number")
