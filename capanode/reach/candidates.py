"""Which addresses of this node may work: those that a coordinator is asked to dial."""

import ipaddress
from collections.abc import Iterable

from protocol.limits import OFFER_ADDRESSES_MAX
from protocol.net.addresses import host_of, split_peer_id
from protocol.net.dial_policy import is_public


def candidates(
    listening: Iterable[str], *, mapped: Iterable[str] = (), observed_hosts: Iterable[str] = ()
) -> tuple[str, ...]:
    """The likeliest first, as many as an offer lists. `mapped` are places (without /p2p/) that a
    router forwards to us. A cloud's machine knows only a private address of itself, and is seen at
    a public one: so each port is also tried at the `observed_hosts`."""
    found = list(dict.fromkeys(listening))
    if not found:
        return ()
    _, peer = split_peer_id(found[0])
    own_hosts = {host_of(address) for address in found}
    seen_elsewhere = [
        place
        for host in observed_hosts
        if host not in own_hosts
        for address in found
        if (place := _moved(split_peer_id(address)[0], host)) is not None
    ]
    others = [f"{place}/p2p/{peer}" for place in dict.fromkeys((*mapped, *seen_elsewhere))]
    public = [address for address in found if is_public_address(address)]
    rest = [address for address in found if address not in public]
    return tuple(dict.fromkeys((*public, *others, *rest)))[:OFFER_ADDRESSES_MAX]


def is_public_address(address: str) -> bool:
    """Whether it is an IP address of the internet."""
    try:
        return is_public(ipaddress.ip_address(host_of(address)))
    except ValueError:
        return False


def _moved(place: str, host: str) -> str | None:
    """The same port at another host of the same kind."""
    parts = place.split("/")
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    if len(parts) < 5 or parts[1] != f"ip{version}":
        return None
    return "/".join([*parts[:2], host, *parts[3:]])
