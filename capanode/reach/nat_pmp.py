"""NAT-PMP (RFC 6886): datagrams to the default gateway, which many home routers answer.

The wire and the dialogue; how a datagram gets to the gateway and back is an argument.
"""

import ipaddress
import struct
from collections.abc import Awaitable, Callable

from capanode.reach.mapping import LIFETIME_S, MappingError, PortMapping, bounded_lifetime_s

# Sends one datagram and returns the gateway's next one. Raises MappingError if none comes.
Exchange = Callable[[bytes], Awaitable[bytes]]

PORT = 5351

_VERSION = 0
_GET_ADDRESS, _MAP_TCP = 0, 2
_IS_ANSWER = 128
_RESULTS = {
    1: "it speaks another version",
    2: "it does not allow that",
    3: "it has no connection itself",
    4: "it has no room for more ports",
    5: "it does not know the request",
}
# version, operation, result, seconds since the router began
_HEADER = struct.Struct("!BBHI")
_MAPPED = struct.Struct("!HHI")


class NatPmp:
    """A gateway that is asked by NAT-PMP."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange

    async def map(self, port: int, *, external_port: int) -> PortMapping:
        host = ipaddress.IPv4Address((await self._ask(_GET_ADDRESS, b"", 4))[:4])
        given_port, lifetime_s = await self._map(port, external_port, LIFETIME_S)
        return PortMapping(port, str(host), given_port, bounded_lifetime_s(lifetime_s), "NAT-PMP")

    async def unmap(self, mapping: PortMapping) -> None:
        await self._map(mapping.port, 0, 0)

    async def _map(self, port: int, external_port: int, lifetime_s: int) -> tuple[int, int]:
        body = struct.pack("!HHHI", 0, port, external_port, lifetime_s)
        answer = await self._ask(_MAP_TCP, body, _MAPPED.size)
        internal, given_port, given_s = _MAPPED.unpack(answer[: _MAPPED.size])
        if internal != port:
            raise MappingError(f"the router answered about port {internal}, not {port}")
        if lifetime_s and not given_port:
            raise MappingError("the router gave no port")
        return given_port, given_s

    async def _ask(self, operation: int, body: bytes, answer_bytes: int) -> bytes:
        """What follows the header of the answer. Raises MappingError."""
        answer = await self._exchange(bytes([_VERSION, operation]) + body)
        if len(answer) < _HEADER.size:
            raise MappingError("the router's answer is too short")
        _, answered, result, _ = _HEADER.unpack(answer[: _HEADER.size])
        if answered != operation | _IS_ANSWER:
            raise MappingError("the router answered another question")
        if result:
            why = _RESULTS.get(result, f"result {result}")
            raise MappingError(f"the router forwards no port by NAT-PMP: {why}")
        rest = answer[_HEADER.size :]
        if len(rest) < answer_bytes:
            raise MappingError("the router's answer is too short")
        return rest
