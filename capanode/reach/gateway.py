"""The network to the router: its address, datagrams and small HTTP requests to it.

Everything that a router sends is bounded in size and time.
"""

import ipaddress
import socket
import struct
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

import trio

from capanode.reach.mapping import MappingError, PortMapper
from capanode.reach.nat_pmp import PORT, Exchange, NatPmp
from capanode.reach.upnp import SEARCH, Fetch, location_of, open_upnp

# RFC 6886 §3.1: each wait doubles the one before; a router on our own wire answers the first.
_WAITS_S = (0.25, 0.5, 1.0)
_DATAGRAM_BYTES_MAX = 2_048
_SEARCH_WITHIN_S = 2.0
_SSDP = ("239.255.255.250", 1900)
_FETCH_WITHIN_S = 4.0
_ANSWER_BYTES_MAX = 128 * 1024
# Of devices that call themselves a router, the first few are tried.
_DEVICES_MAX = 4

_ROUTES = Path("/proc/net/route")


def default_gateway(routes: str) -> str | None:
    """From the text of /proc/net/route."""
    for line in routes.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 2 and fields[1] == "00000000" and fields[2] != "00000000":
            return str(ipaddress.IPv4Address(struct.pack("<I", int(fields[2], 16))))
    return None


async def find_mappers() -> Sequence[PortMapper]:
    """The ways to ask this machine's router, the quickest first. Raises MappingError."""
    gateway = await trio.to_thread.run_sync(_read_gateway)
    if gateway is None:
        raise MappingError("this machine has no default gateway")
    mappers: list[PortMapper] = [NatPmp(datagrams_to(gateway, PORT))]
    for location in await _search():
        host = urlsplit(location).hostname or ""
        try:
            mappers.append(await open_upnp(fetch, location, await own_host_towards(host)))
        except MappingError:
            continue
    return mappers


def _read_gateway() -> str | None:
    return default_gateway(_ROUTES.read_text()) if _ROUTES.exists() else None


def datagrams_to(host: str, port: int) -> Exchange:
    """A gateway that answers datagrams."""

    async def exchange(request: bytes) -> bytes:
        with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            try:
                await udp.connect((host, port))
                for wait_s in _WAITS_S:
                    await udp.send(request)
                    with trio.move_on_after(wait_s):
                        return await udp.recv(_DATAGRAM_BYTES_MAX)
            except OSError as error:
                raise MappingError(f"{host} does not speak NAT-PMP: {error}") from error
        raise MappingError(f"{host} does not answer by NAT-PMP")

    return exchange


async def own_host_towards(host: str) -> str:
    """Our address in a router's network."""
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        try:
            await udp.connect((host, PORT))
        except OSError as error:
            raise MappingError(f"{host} cannot be reached: {error}") from error
        return str(udp.getsockname()[0])


async def _search() -> list[str]:
    found: dict[str, None] = {}
    with trio.socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        try:
            await udp.sendto(SEARCH, _SSDP)
        except OSError:
            return []
        with trio.move_on_after(_SEARCH_WITHIN_S):
            while len(found) < _DEVICES_MAX:
                answer, (sender, *_) = await udp.recvfrom(_DATAGRAM_BYTES_MAX)
                location = location_of(answer, sender)
                if location is not None:
                    found[location] = None
    return list(found)


async def _fetch(url: str, headers: dict[str, str], body: bytes | None) -> tuple[int, bytes]:
    """One request over a connection of its own. Raises MappingError."""
    parts = urlsplit(url)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    lines = [f"{'GET' if body is None else 'POST'} {path} HTTP/1.0", f"Host: {parts.netloc}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"Content-Length: {len(body or b'')}", "Connection: close", "", ""]
    try:
        with trio.fail_after(_FETCH_WITHIN_S):
            stream = await trio.open_tcp_stream(parts.hostname or "", parts.port or 80)
            async with stream:
                await stream.send_all("\r\n".join(lines).encode() + (body or b""))
                return _read_answer(await _receive_all(stream))
    except (OSError, trio.BrokenResourceError, trio.TooSlowError, ValueError) as error:
        raise MappingError(f"the router does not answer at {url}: {error}") from error


fetch: Fetch = _fetch


async def _receive_all(stream: trio.SocketStream) -> bytes:
    data = bytearray()
    while len(data) < _ANSWER_BYTES_MAX:
        piece = await stream.receive_some(_ANSWER_BYTES_MAX - len(data))
        if not piece:
            break
        data += piece
    return bytes(data)


def _read_answer(data: bytes) -> tuple[int, bytes]:
    """Status and body; a body in chunks keeps their lengths, which no pattern of ours minds.
    Raises ValueError."""
    head, found, body = data.partition(b"\r\n\r\n")
    words = head.split(b"\r\n", 1)[0].split()
    if not found or len(words) < 2 or not words[0].startswith(b"HTTP/1."):
        raise ValueError("not HTTP")
    return int(words[1]), body
