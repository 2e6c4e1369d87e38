"""UPnP's Internet Gateway Device: a router found by multicast and asked by SOAP. The widest spread.

What a router says is read with patterns instead of an XML parser: three values are needed, and what
answers a multicast need not be a router. How a request gets there is an argument.
"""

import ipaddress
import re
from collections.abc import Awaitable, Callable
from urllib.parse import urljoin, urlsplit

from capanode.reach.mapping import LIFETIME_S, MappingError, PortMapping

# URL, headers, body (None to GET) → status and body. Raises MappingError.
Fetch = Callable[[str, dict[str, str], bytes | None], Awaitable[tuple[int, bytes]]]

SEARCH = (
    b'M-SEARCH * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nMAN: "ssdp:discover"\r\nMX: 1\r\n'
    b"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1\r\n\r\n"
)

_SERVICE = re.compile(r"<service>(.*?)</service>", re.DOTALL | re.IGNORECASE)
_TYPE = re.compile(
    r"<serviceType>\s*(urn:schemas-upnp-org:service:WAN(?:IP|PPP)Connection:\d)\s*</serviceType>",
    re.IGNORECASE,
)
_CONTROL = re.compile(r"<controlURL>\s*([^<\s]{1,1024})\s*</controlURL>", re.IGNORECASE)
_ADDRESS = re.compile(r"<NewExternalIPAddress>\s*([0-9.]{7,15})\s*</NewExternalIPAddress>")
_ERROR = re.compile(r"<errorCode>\s*(\d{1,4})\s*</errorCode>")
_LOCATION = re.compile(rb"^location:\s*(http://[^\s]{1,1024})\s*$", re.IGNORECASE | re.MULTILINE)

_ONLY_FOR_EVER = 725  # OnlyPermanentLeasesSupported
_TAKEN = 718  # ConflictInMappingEntry
_DESCRIPTION = "capanode"
# External ports to try where others have taken ours.
_PORTS_TRIED_MAX = 4


class Upnp:
    """A router whose control URL is known. `own_host` is our address in its network."""

    def __init__(self, fetch: Fetch, control_url: str, service: str, own_host: str) -> None:
        self._fetch = fetch
        self._control_url = control_url
        self._service = service
        self._own_host = own_host

    async def map(self, port: int, *, external_port: int) -> PortMapping:
        answer = await self._call("GetExternalIPAddress", {})
        found = _ADDRESS.search(answer)
        if found is None:
            raise MappingError("the router does not say its address outside")
        host = str(_ipv4(found[1]))
        for tried in range(external_port, external_port + _PORTS_TRIED_MAX):
            if await self._add(port, tried):
                return PortMapping(port, host, tried, LIFETIME_S, "UPnP")
        raise MappingError(f"the router forwards ports from {external_port} on to others")

    async def unmap(self, mapping: PortMapping) -> None:
        await self._call(
            "DeletePortMapping",
            {
                "NewRemoteHost": "",
                "NewExternalPort": str(mapping.external_port),
                "NewProtocol": "TCP",
            },
        )

    async def _add(self, port: int, external_port: int) -> bool:
        """False if that external port is another's."""
        for lifetime_s in (LIFETIME_S, 0):
            try:
                await self._call(
                    "AddPortMapping",
                    {
                        "NewRemoteHost": "",
                        "NewExternalPort": str(external_port),
                        "NewProtocol": "TCP",
                        "NewInternalPort": str(port),
                        "NewInternalClient": self._own_host,
                        "NewEnabled": "1",
                        "NewPortMappingDescription": _DESCRIPTION,
                        "NewLeaseDuration": str(lifetime_s),
                    },
                )
            except UpnpRefusalError as error:
                if error.code == _TAKEN:
                    return False
                if error.code != _ONLY_FOR_EVER or not lifetime_s:
                    raise
            else:
                return True
        return False

    async def _call(self, action: str, arguments: dict[str, str]) -> str:
        """Raises UpnpRefusalError, MappingError."""
        inner = "".join(f"<{name}>{value}</{name}>" for name, value in arguments.items())
        body = (
            '<?xml version="1.0"?><s:Envelope '
            'xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" '
            's:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body>'
            f'<u:{action} xmlns:u="{self._service}">{inner}</u:{action}></s:Body></s:Envelope>'
        )
        headers = {
            "Content-Type": 'text/xml; charset="utf-8"',
            "SOAPAction": f'"{self._service}#{action}"',
        }
        status, answer = await self._fetch(self._control_url, headers, body.encode())
        text = answer.decode("utf-8", "replace")
        if status != 200:
            found = _ERROR.search(text)
            code = int(found[1]) if found else 0
            raise UpnpRefusalError(f"the router refuses {action}: error {code or status}", code)
        return text


class UpnpRefusalError(MappingError):
    """The router's own error number."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


async def open_upnp(fetch: Fetch, location: str, own_host: str) -> Upnp:
    """The router that describes itself at `location`. Raises MappingError."""
    status, body = await fetch(location, {}, None)
    text = body.decode("utf-8", "replace")
    for service in _SERVICE.findall(text) if status == 200 else ():
        kind, control = _TYPE.search(service), _CONTROL.search(service)
        if kind is not None and control is not None:
            url = urljoin(location, control[1])
            if urlsplit(url).hostname != urlsplit(location).hostname:
                raise MappingError("the router points to another host")
            return Upnp(fetch, url, kind[1], own_host)
    raise MappingError("what answers as a router forwards no ports")


def location_of(answer: bytes, sender: str) -> str | None:
    """Where a search's answer says that the router describes itself. Only at its sender's own
    address, in a network of ours: anything else could be aimed at others."""
    found = _LOCATION.search(answer)
    if found is None:
        return None
    location = found[1].decode("ascii", "replace")
    try:
        is_near = ipaddress.ip_address(sender).is_private
    except ValueError:
        return None
    return location if is_near and urlsplit(location).hostname == sender else None


def _ipv4(text: str) -> ipaddress.IPv4Address:
    try:
        return ipaddress.IPv4Address(text)
    except ValueError:
        raise MappingError(f"the router's address outside is {text!r}") from None
