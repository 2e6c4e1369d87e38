"""What is asked of a coordinator, and answered: bodies of REQUEST and REPLY frames.

Two protocols use them. On `LEASE_PROTOCOL` clients lease, quote and settle; on `CONTROL_PROTOCOL`
nodes report load and hand in receipts. Nothing here is signed except the envelopes inside: the
connection proves who speaks, and what moves money carries its own signature.
"""

from dataclasses import dataclass
from enum import StrEnum

from protocol.ids import PeerId
from protocol.limits import (
    FIRST_OUTPUT_WITHIN_MS,
    GAP_WITHIN_MS,
    LIST_ITEMS_MAX,
    NAME_CHARS_MAX,
)
from protocol.messages import NO_CONSTRAINTS, Constraints, Objective, Task
from protocol.offers import LoadReport
from protocol.pricing import PriceSheet, Units

JOB_PROTOCOL = "/capa/job/1"
LEASE_PROTOCOL = "/capa/lease/1"
CONTROL_PROTOCOL = "/capa/control/1"

# A node gossips in the shard of its own id; a coordinator listens to all. Few shards: a small
# network must still have several subscribers in each.
OFFER_SHARDS = 4


def offer_topic(shard: int) -> str:
    return f"/capa/offers/1/{shard}"


def shard_of(node: PeerId) -> int:
    """The last characters of a peer id are hash-like, so their sum spreads well enough."""
    return sum(node[-4:].encode()) % OFFER_SHARDS


class Method(StrEnum):
    """REQUEST methods; the name of the body that each takes is beside it."""

    LEASE = "lease"  # LeaseAsk → LeaseGrant
    QUOTE = "quote"  # QuoteAsk → QuoteReply
    SETTLE = "settle"  # SettleAsk → SettleReply
    DELIVERY = "delivery"  # DeliveryAsk → DeliveryAck
    NODES = "nodes"  # NodesAsk → NodesReply
    BALANCE = "balance"  # BalanceAsk → BalanceReply
    ATTACH = "attach"  # AttachAsk → AttachReply (control)
    LOAD = "load"  # LoadReport → LoadAck (control)
    RECEIPT = "receipt"  # ReceiptAsk → SettleReply (control)


# Nothing on Earth is that far away.
ROUND_TRIP_MAX_US = 60_000_000


@dataclass(frozen=True, slots=True)
class RoundTrip:
    """How far a node is from the client, as the client measured it."""

    node: PeerId
    rtt_us: int

    def __post_init__(self) -> None:
        if not 0 < self.rtt_us <= ROUND_TRIP_MAX_US:
            raise ValueError("a round trip is out of range")


@dataclass(frozen=True, slots=True)
class LeaseAsk:
    """Lease this request. `exclude` are nodes that the client has tried; `receipts` are their
    signed refusals, which free the holds of the earlier attempts at once, and `deliveries` the
    client's words on those that ended without a receipt. `round_trips` replace the coordinator's
    own measurements for this choice: it stands elsewhere."""

    request: bytes
    exclude: tuple[PeerId, ...] = ()
    receipts: tuple[bytes, ...] = ()
    deliveries: tuple[bytes, ...] = ()
    round_trips: tuple[RoundTrip, ...] = ()

    def __post_init__(self) -> None:
        if max(map(len, (self.exclude, self.receipts, self.deliveries))) > LIST_ITEMS_MAX:
            raise ValueError("too many earlier attempts")
        if len(self.round_trips) > LIST_ITEMS_MAX:
            raise ValueError("too many round trips")


@dataclass(frozen=True, slots=True)
class LeaseGrant:
    """The signed lease, and where the node listens. `offer` is the node's own signed offer, so that
    the client can check the price without trusting the coordinator. How long a node of that speed
    may be silent before its first output and between outputs is advice to the client."""

    lease: bytes
    offer: bytes
    match_us: int
    first_output_within_ms: int = FIRST_OUTPUT_WITHIN_MS
    gap_within_ms: int = GAP_WITHIN_MS


@dataclass(frozen=True, slots=True)
class QuoteAsk:
    """A dry run: what would a job like this cost, where, and why there. Nothing is held."""

    model: str
    task: Task
    units_expected: Units
    units_max: Units
    objective: Objective = Objective.BALANCED
    constraints: Constraints = NO_CONSTRAINTS

    def __post_init__(self) -> None:
        if not 0 < len(self.model) <= NAME_CHARS_MAX:
            raise ValueError("the model's name is empty or too long")


@dataclass(frozen=True, slots=True)
class QuoteCandidate:
    """A node that fits, best first. Latencies are expected milliseconds for the expected units."""

    node: PeerId
    cost_nano: int
    latency_ms: int
    rtt_ms: float
    queue_ms: int
    prefill_ms: int
    decode_ms: int
    score: float
    price: PriceSheet
    region: str
    isolation: str
    reasons: tuple[str, ...]

    @property
    def first_output_ms(self) -> float:
        return self.rtt_ms + self.queue_ms + self.prefill_ms


@dataclass(frozen=True, slots=True)
class QuoteRejection:
    """A node that does not fit, and every reason why not."""

    node: PeerId
    reasons: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class QuoteReply:
    model: str
    model_digest: str
    ceiling_nano: int
    candidates: tuple[QuoteCandidate, ...]
    rejections: tuple[QuoteRejection, ...]
    match_us: int


@dataclass(frozen=True, slots=True)
class SettleAsk:
    """The client hands in a receipt with its own countersignature."""

    receipt: bytes
    acceptance: bytes


@dataclass(frozen=True, slots=True)
class SettleReply:
    """The receipt is durable: `state` is `pending`, `settled` or `disputed`."""

    state: str
    amount_nano: int


@dataclass(frozen=True, slots=True)
class DeliveryAsk:
    """The client hands in its signed `Delivery`: what it got of a job that ended without a
    receipt, and why it ended. It bounds what the lease may cost, and tells how the node did."""

    delivery: bytes


@dataclass(frozen=True, slots=True)
class DeliveryAck:
    """The client's word is durable."""


@dataclass(frozen=True, slots=True)
class NodesAsk:
    """One page of the nodes that offer `model` (all if empty), in order of their ids."""

    model: str = ""
    after: str = ""

    def __post_init__(self) -> None:
        if max(len(self.model), len(self.after)) > NAME_CHARS_MAX:
            raise ValueError("a name is too long")


@dataclass(frozen=True, slots=True)
class NodeSummary:
    """One node as this coordinator sees it now."""

    node: PeerId
    offer: bytes
    rtt_ms: float | None
    attached: bool
    running: int
    queued: int
    health: str
    success_rate: float


@dataclass(frozen=True, slots=True)
class NodesReply:
    """`next_after` asks for the following page; empty on the last one."""

    nodes: tuple[NodeSummary, ...]
    next_after: str = ""


@dataclass(frozen=True, slots=True)
class BalanceAsk:
    """Of the account that asks."""


@dataclass(frozen=True, slots=True)
class BalanceReply:
    available_nano: int
    held_nano: int


@dataclass(frozen=True, slots=True)
class AttachAsk:
    """A node joins a coordinator's active set; its offer comes along, ahead of gossip."""

    offer: bytes
    load: LoadReport


@dataclass(frozen=True, slots=True)
class AttachReply:
    """How often the coordinator wants to hear of load; it calls a silent node dead after three."""

    report_every_ms: int


@dataclass(frozen=True, slots=True)
class LoadAck:
    """Nothing to say: the reply itself is the sign of life."""


@dataclass(frozen=True, slots=True)
class ReceiptAsk:
    """A node hands in a receipt from its outbox, with the client's acceptance if it came."""

    receipt: bytes
    acceptance: bytes = b""
