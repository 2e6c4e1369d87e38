"""Whether this machine lets us listen at an address: asked before minutes of loading models."""

import errno
import socket

from capanode.errors import NodeError
from protocol.net.addresses import check_tcp
from protocol.net.errors import AddressInvalid


class PortError(NodeError):
    """We cannot listen there; `advice` says what to do about it."""

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice


def check_port(place: str) -> None:
    """Listen at a multiaddr for a moment. Raises PortError. Names are left to the transport."""
    try:
        check_tcp(place)
    except AddressInvalid as error:
        raise PortError(str(error), "correct `listen`") from None
    _, kind, host, _, port = place.split("/")
    if kind not in ("ip4", "ip6"):
        return
    family = socket.AF_INET6 if kind == "ip6" else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            # As the transport does: a port whose last connections are still closing is free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, int(port)))
            probe.listen(1)
    except OSError as error:
        raise PortError(f"{place}: {error.strerror or error}", _advice(error)) from None


def _advice(error: OSError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "stop the program that listens there, or choose another port with --listen"
    if error.errno == errno.EACCES:
        return "ports below 1024 are root's: choose a higher one with --listen"
    return "choose an address of this machine with --listen, for example /ip4/0.0.0.0/tcp/4101"
