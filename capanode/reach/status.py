"""What is known of this node's reachability, as facts for `status`, `doctor` and the screen."""

from dataclasses import dataclass
from enum import StrEnum

from protocol.ids import PeerId
from protocol.reach import Dialled


class ReachState(StrEnum):
    """How a buyer gets to this node."""

    UNKNOWN = "unknown"  # no coordinator has tried yet, or none can
    DIRECT = "direct"
    RELAYED = "relayed"
    UNREACHABLE = "unreachable"


@dataclass(frozen=True, slots=True)
class TriedAddress:
    """One address, and what a coordinator's dial came to."""

    coordinator: PeerId
    address: str
    outcome: Dialled
    took_ms: int


@dataclass(frozen=True, slots=True)
class ReachStatus:
    """`offered` are the addresses in the offer, `observed_hosts` where coordinators see this node,
    `relays` the addresses under which relays pass buyers on, and `relay_failures` why others do
    not; `failed_buyers` is how many could lately not dial it, `advice` what to do, if anything."""

    state: ReachState
    offered: tuple[str, ...]
    tried: tuple[TriedAddress, ...]
    observed_hosts: tuple[str, ...]
    relays: tuple[str, ...]
    relay_failures: tuple[str, ...]
    port_mapping: str
    failed_buyers: int
    advice: tuple[str, ...]


NOT_TRIED = ReachStatus(ReachState.UNKNOWN, (), (), (), (), (), "", 0, ())
