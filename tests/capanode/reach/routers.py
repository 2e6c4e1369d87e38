"""Routers in memory that forward ports, as far as the protocols tell."""

import re
import struct
from dataclasses import dataclass, field

import trio

from capanode.reach.mapping import MappingError

OUTSIDE = "8.8.4.4"
CONTROL = "http://192.168.1.1:5000/ctl/IPConn"
LOCATION = "http://192.168.1.1:5000/rootDesc.xml"
SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
DESCRIPTION = f"""<?xml version="1.0"?><root><device><serviceList>
<service><serviceType>urn:schemas-upnp-org:service:Layer3Forwarding:1</serviceType>
<controlURL>/ctl/L3F</controlURL></service></serviceList><deviceList><device><serviceList><service>
<serviceType>{SERVICE}</serviceType><serviceId>x</serviceId><controlURL>/ctl/IPConn</controlURL>
</service></serviceList></device></deviceList></device></root>"""


@dataclass
class PmpRouter:
    """Speaks NAT-PMP. `forwarded` are external ports by internal one."""

    outside: str = OUTSIDE
    given_port: int | None = None
    lifetime_s: int | None = None
    result: int = 0
    is_silent: bool = False
    forwarded: dict[int, int] = field(default_factory=dict)
    asked: int = 0

    async def exchange(self, request: bytes) -> bytes:
        await trio.lowlevel.checkpoint()
        self.asked += 1
        if self.is_silent:
            raise MappingError("it does not answer")
        version, operation = request[0], request[1]
        assert version == 0
        head = struct.pack("!BBHI", 0, operation | 128, self.result, 77)
        if operation == 0:
            return head + bytes(map(int, self.outside.split(".")))
        _, internal, external, lifetime_s = struct.unpack("!HHHI", request[2:])
        if not lifetime_s:
            self.forwarded.pop(internal, None)
            return head + struct.pack("!HHI", internal, 0, 0)
        given = self.given_port or external
        self.forwarded[internal] = given
        granted_s = lifetime_s if self.lifetime_s is None else self.lifetime_s
        return head + struct.pack("!HHI", internal, given, granted_s)


@dataclass
class UpnpRouter:
    """Speaks UPnP. `taken` are external ports of other machines."""

    outside: str = OUTSIDE
    only_for_ever: bool = False
    taken: set[int] = field(default_factory=set)
    forwarded: dict[int, tuple[str, int, int]] = field(default_factory=dict)

    async def fetch(
        self, url: str, headers: dict[str, str], body: bytes | None
    ) -> tuple[int, bytes]:
        await trio.lowlevel.checkpoint()
        if body is None:
            return (200, DESCRIPTION.encode()) if url == LOCATION else (404, b"")
        assert url == CONTROL
        return self._answer(headers["SOAPAction"].strip('"').partition("#")[2], body.decode())

    def _answer(self, action: str, body: str) -> tuple[int, bytes]:
        def value(name: str) -> str:
            found = re.search(f"<{name}>(.*?)</{name}>", body)
            assert found is not None, name
            return found[1]

        if action == "GetExternalIPAddress":
            text = f"<NewExternalIPAddress>{self.outside}</NewExternalIPAddress>"
            return 200, text.encode()
        port = int(value("NewExternalPort"))
        assert value("NewProtocol") == "TCP"
        if action == "DeletePortMapping":
            self.forwarded.pop(port, None)
            return 200, b""
        lifetime_s = int(value("NewLeaseDuration"))
        if port in self.taken:
            return _refusal(718)
        if self.only_for_ever and lifetime_s:
            return _refusal(725)
        internal = int(value("NewInternalPort"))
        self.forwarded[port] = (value("NewInternalClient"), internal, lifetime_s)
        return 200, b""


def _refusal(code: int) -> tuple[int, bytes]:
    return 500, f"<UPnPError><errorCode>{code}</errorCode></UPnPError>".encode()
