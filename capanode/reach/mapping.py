"""A port that a router forwards to us: what the ways to ask for one have in common."""

from dataclasses import dataclass
from typing import Protocol

from capanode.errors import NodeError

# Renewed at half of it. A router that reboots forgets it; one that we leave in a hurry keeps it no
# longer than this.
LIFETIME_S = 3_600
# What a router may grant instead, whatever it says.
LIFETIME_MIN_S, LIFETIME_MAX_S = 120, 24 * 3_600


class MappingError(NodeError):
    """There is no such router, or it does not forward ports."""


@dataclass(frozen=True, slots=True)
class PortMapping:
    """`external_port` of the router at `external_host` leads to our `port`. `how` names the
    protocol; `lifetime_s` is when it has to be renewed at the latest."""

    port: int
    external_host: str
    external_port: int
    lifetime_s: int
    how: str

    @property
    def place(self) -> str:
        """Where others dial it, without our identity."""
        return f"/ip4/{self.external_host}/tcp/{self.external_port}"


class PortMapper(Protocol):
    """One way to ask a router."""

    async def map(self, port: int, *, external_port: int) -> PortMapping:
        """Forward a port, or renew that; the router may give another external port.

        Raises MappingError.
        """
        ...

    async def unmap(self, mapping: PortMapping) -> None:
        """Raises MappingError."""
        ...


def bounded_lifetime_s(granted_s: int) -> int:
    return min(max(granted_s, LIFETIME_MIN_S), LIFETIME_MAX_S)
