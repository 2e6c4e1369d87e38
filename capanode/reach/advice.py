"""What the owner can do about a node that cannot be dialled, in words. Pure."""

import ipaddress
import os
from collections.abc import Iterable
from pathlib import Path

from protocol.net.addresses import host_of
from protocol.reach import Dialled, DialResult

# Carriers share one public address among many customers from this block (RFC 6598).
_CARRIER_NAT = ipaddress.ip_network("100.64.0.0/10")


def port_of(address: str) -> str:
    """The TCP port of a multiaddr; empty if it has none."""
    parts = address.split("/")
    return parts[4] if len(parts) > 4 and parts[3] == "tcp" else ""


def advise(
    results: Iterable[DialResult], listening: Iterable[str], *, by_hand: bool, virtual: str
) -> tuple[str, ...]:
    """`results` are of a node none of whose addresses was reached; `by_hand` if the operator wrote
    them down; `virtual` names the container or virtual machine that the node runs in, if any."""
    outcomes = {result.outcome for result in results}
    listened = [address for address in listening if port_of(address)]
    ports = ", ".join(dict.fromkeys(map(port_of, listened)))
    hosts = ", ".join(dict.fromkeys(host_of(address) for address in listened))
    advice: list[str] = []
    if virtual == "wsl":
        advice.append(
            "WSL2 has a network of its own: set networkingMode=mirrored in .wslconfig, or forward "
            f"port {ports} from Windows with `netsh interface portproxy`"
        )
    if virtual == "container":
        advice.append(
            f"a container has a network of its own: publish port {ports} (docker run -p "
            f"{ports}:{ports}) and set `announce` to the host's address, or use --network=host"
        )
    if Dialled.OTHER_PEER in outcomes:
        advice.append(
            "another node answers at this node's address: forward another port, or correct "
            "`announce`"
        )
    if by_hand and outcomes & {Dialled.REFUSED, Dialled.TIMED_OUT}:
        advice.append(
            "`announce` names an address that does not lead here: forward its port at the router "
            f"to this machine (TCP {ports} at {hosts}), or leave `announce` out"
        )
    elif not by_hand and ports:
        advice.append(
            f"forward TCP port {ports} at the router to this machine ({hosts}), or switch on UPnP "
            "or NAT-PMP there"
        )
    if Dialled.TIMED_OUT in outcomes and ports:
        advice.append(f"a firewall may drop what comes in: allow TCP port {ports}")
    return tuple(advice)


def is_carrier_nat(host: str) -> bool:
    """A router with such an address outside cannot be forwarded to: its provider has one more."""
    try:
        return ipaddress.ip_address(host) in _CARRIER_NAT
    except ValueError:
        return False


def virtual_network() -> str:
    """`wsl`, `container`, or empty: whether this machine's network is inside another one's."""
    if "microsoft" in os.uname().release.lower():
        return "wsl"
    if Path("/.dockerenv").exists() or Path("/run/.containerenv").exists():
        return "container"
    return ""
