"""Which addresses we dial. Every dial of a transport passes here.

Addresses come from offers, that is, from strangers, and a dial is a request to whatever listens
there: a database on loopback, a router, a cloud's metadata service. So only addresses of the public
internet are dialled, except for networks that the operator names (`dial_private`), and for the very
addresses that the operator configured, such as a node's coordinators.
"""

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from protocol.net.errors import AddressForbidden

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address
IpNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK: tuple[IpNetwork, ...] = (
    ipaddress.ip_network("127.0.0.0/8"),
    ipaddress.ip_network("::1/128"),
)

# All of IPv6 that is assigned to hosts of the internet (RFC 4291 §2.4): site-local addresses, for
# one, are not in it, although `is_global` takes them for global.
_GLOBAL_UNICAST_V6 = ipaddress.ip_network("2000::/3")

# What `is_global` calls global although no host of the internet has it, or what carries an IPv4
# address that would have to be judged instead (6to4, Teredo): such addresses are not needed.
_NEVER_PUBLIC = tuple(
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",
        "192.88.99.0/24",
        "2001::/23",
        "2002::/16",
        "3fff::/20",
    )
)


@dataclass(frozen=True, slots=True)
class DialPolicy:
    """`networks` are dialled besides the public internet. `trusted` are multiaddrs without /p2p/
    that the operator wrote down, which are dialled wherever they lead."""

    networks: tuple[IpNetwork, ...] = ()
    trusted: frozenset[str] = frozenset()

    def with_trusted(self, addresses: Iterable[str]) -> "DialPolicy":
        """The same, with the operator's own addresses (with or without /p2p/)."""
        places = {address.partition("/p2p/")[0] for address in addresses}
        return DialPolicy(self.networks, self.trusted | places)

    def trusts(self, place: str) -> bool:
        return place in self.trusted

    def allows(self, host: str) -> bool:
        """Whether an IP address, as text, may be dialled. Host names must be resolved first."""
        try:
            address = ipaddress.ip_address(host)
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return is_public(address) or any(address in network for network in self.networks)

    def allows_place(self, place: str) -> bool:
        """As `allows`, for /ip4|ip6/HOST/…; True for host names, which are judged when dialled."""
        parts = place.split("/")
        is_ip = len(parts) > 2 and parts[1] in ("ip4", "ip6")
        return self.trusts(place) or not is_ip or self.allows(parts[2])

    def check_hosts(self, place: str, hosts: Iterable[str]) -> list[str]:
        """The addresses, of those that `place` resolves to, that may be dialled.

        Raises AddressForbidden if there are none.
        """
        found = list(dict.fromkeys(hosts))
        allowed = found if self.trusts(place) else [host for host in found if self.allows(host)]
        if not allowed:
            raise AddressForbidden(
                f"{place} is not on the public internet; to dial it, add its network to "
                "dial_private"
            )
        return allowed


PUBLIC_ONLY = DialPolicy()
ALLOW_LOOPBACK = DialPolicy(LOOPBACK)


def is_public(address: IpAddress) -> bool:
    """A unicast address of the internet: not private, loopback, link-local, shared, documentation,
    multicast, reserved or unspecified."""
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and (address.version == 4 or address in _GLOBAL_UNICAST_V6)
        and not any(address in network for network in _NEVER_PUBLIC)
    )


def parse_networks(texts: Iterable[str]) -> tuple[IpNetwork, ...]:
    """`loopback`, or networks such as 192.168.0.0/16. Raises ValueError."""
    networks: list[IpNetwork] = []
    for text in texts:
        networks += LOOPBACK if text == "loopback" else [ipaddress.ip_network(text)]
    return tuple(networks)
