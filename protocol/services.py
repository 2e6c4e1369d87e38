"""What is asked of a coordinator, and answered: bodies of REQUEST and REPLY frames.

Two protocols use them. On `LEASE_PROTOCOL` clients lease, quote and settle; on `CONTROL_PROTOCOL`
nodes report load and hand in receipts. Nothing here is signed except the envelopes inside: the
connection proves who speaks, and what moves money carries its own signature.
"""

from dataclasses import dataclass
from enum import StrEnum

from protocol.codec import added
from protocol.fields import STAMP_MS_MAX, check
from protocol.ids import Digest, JobId, LeaseId, PeerId, parse_ulid
from protocol.limits import (
    FIRST_OUTPUT_WITHIN_MS,
    GAP_WITHIN_MS,
    LIST_ITEMS_MAX,
    NAME_CHARS_MAX,
)
from protocol.messages import NO_CONSTRAINTS, Constraints, Objective, Task
from protocol.offers import LoadReport
from protocol.pricing import PriceSheet, Units
from protocol.vocabulary import OpenVocabulary

JOB_PROTOCOL = "/capa/job/1"
LEASE_PROTOCOL = "/capa/lease/1"
CONTROL_PROTOCOL = "/capa/control/1"
# Its bodies are in `protocol.blobs`.
BLOB_PROTOCOL = "/capa/blobs/1"

# A page of summaries is far below a frame.
JOBS_PAGE_MAX = 100
# As OpenRouter's: a month, and a few thousand rows at most.
USAGE_DAYS_MAX = 31
DAY_MS = 24 * 3_600 * 1_000

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
    JOBS = "jobs"  # JobsAsk → JobsReply
    JOB = "job"  # JobAsk → JobReply
    EVIDENCE = "evidence"  # EvidenceAsk → EvidenceReply
    USAGE = "usage"  # UsageAsk → UsageReply
    ATTACH = "attach"  # AttachAsk → AttachReply (control)
    LOAD = "load"  # LoadReport → LoadAck (control)
    RECEIPT = "receipt"  # ReceiptAsk → SettleReply (control)
    DIAL_BACK = "dial_back"  # DialBackAsk → DialBackReply (control)
    STANDING = "standing"  # StandingAsk → StandingReply (control)


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
    may be silent before its first output and between outputs is advice to the client, and so is
    when a first output is later than 19 of 20 of this node's (0 if that is not known)."""

    lease: bytes
    offer: bytes
    match_us: int
    first_output_within_ms: int = FIRST_OUTPUT_WITHIN_MS
    gap_within_ms: int = GAP_WITHIN_MS
    hedge_after_ms: int = 0


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
    # Until the model is loaded, where it is cold.
    load_ms: int = added(0)

    @property
    def first_output_ms(self) -> float:
        return self.rtt_ms + self.queue_ms + self.load_ms + self.prefill_ms


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
    """The receipt is durable: `state` is `pending`, `settled` or `disputed`. `node_nano` is what
    the node gets of the amount, after the fee; coordinators of older versions do not say it."""

    state: str
    amount_nano: int
    node_nano: int | None = None


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
    """`credited_nano` is all that ever came in, `spent_nano` all that was ever paid."""

    available_nano: int
    held_nano: int
    credited_nano: int = 0
    spent_nano: int = 0


@dataclass(frozen=True, slots=True)
class JobsAsk:
    """One page of the asker's own jobs, newest first: those older than `before`, or the newest."""

    before: str = ""
    limit: int = JOBS_PAGE_MAX

    def __post_init__(self) -> None:
        if len(self.before) > NAME_CHARS_MAX:
            raise ValueError("the job id is too long")
        if not 0 < self.limit <= JOBS_PAGE_MAX:
            raise ValueError(f"a page has 1 to {JOBS_PAGE_MAX} jobs")


@dataclass(frozen=True, slots=True)
class Counted:
    """Sums of units, over attempts or jobs: as `Units`, without their bounds."""

    input_tokens: int = 0
    output_tokens: int = 0
    images: int = 0
    tensor_elements: int = 0
    cached_tokens: int = added(0)


@dataclass(frozen=True, slots=True)
class JobSummary:
    """One job of the asker. `model` is what its request named; `amount_nano` and `units` are sums
    over what its nodes billed; `ended_at_ms` is 0 while it runs."""

    job_id: JobId
    model: str
    model_digest: Digest
    task: Task
    state: str
    created_at_ms: int
    ended_at_ms: int
    error_code: str
    amount_nano: int
    units: Counted


@dataclass(frozen=True, slots=True)
class JobsReply:
    """`next_before` asks for the following page; empty on the last one."""

    jobs: tuple[JobSummary, ...]
    next_before: str = ""


@dataclass(frozen=True, slots=True)
class JobAsk:
    job_id: JobId

    def __post_init__(self) -> None:
        parse_ulid(self.job_id)


@dataclass(frozen=True, slots=True)
class JobAttempt:
    """One lease of a job, and what its node's receipt says, if there is one: `finish` is empty
    without. `code` is why it ended otherwise than with an answer, as far as that was signed."""

    lease_id: LeaseId
    attempt: int
    node: PeerId
    state: str
    price: PriceSheet
    ceiling_nano: int
    created_at_ms: int
    ended_at_ms: int
    finish: str
    code: str
    amount_nano: int
    units: Units
    queued_ms: int
    first_output_ms: int
    total_ms: int
    receipt_state: str
    receipt_digest: str


@dataclass(frozen=True, slots=True)
class JobReply:
    job: JobSummary
    attempts: tuple[JobAttempt, ...]


@dataclass(frozen=True, slots=True)
class EvidenceAsk:
    """Of one lease of a job; of the last one with a receipt if `lease_id` is empty."""

    job_id: JobId
    lease_id: str = ""

    def __post_init__(self) -> None:
        parse_ulid(self.job_id)
        if self.lease_id:
            parse_ulid(self.lease_id)


@dataclass(frozen=True, slots=True)
class EvidenceReply:
    """What was signed of one lease, as it was signed; empty for what there is not."""

    request: bytes
    lease: bytes
    receipt: bytes
    acceptance: bytes = b""
    delivery: bytes = b""


@dataclass(frozen=True, slots=True)
class UsageAsk:
    """What the asker's jobs of these days came to. Days are UTC, counted since 1970; `last_day` is
    the newest, and the reply covers `days` up to it."""

    last_day: int
    days: int = USAGE_DAYS_MAX

    def __post_init__(self) -> None:
        if not 0 < self.days <= USAGE_DAYS_MAX:
            raise ValueError(f"usage covers 1 to {USAGE_DAYS_MAX} days")
        if not 0 <= self.last_day <= STAMP_MS_MAX // DAY_MS:
            raise ValueError("the day is out of range")


@dataclass(frozen=True, slots=True)
class UsageRow:
    """One day and model."""

    day: int
    model_digest: Digest
    model: str
    jobs: int
    amount_nano: int
    units: Counted


@dataclass(frozen=True, slots=True)
class UsageReply:
    """In order of days, newest first; `is_cut` if there are more rows than a reply takes."""

    rows: tuple[UsageRow, ...]
    is_cut: bool = False


@dataclass(frozen=True, slots=True)
class AttachAsk:
    """A node joins a coordinator's active set; its offer comes along, ahead of gossip."""

    offer: bytes
    load: LoadReport


@dataclass(frozen=True, slots=True)
class AttachReply:
    """How often the coordinator wants to hear of load; it calls a silent node dead after three."""

    report_every_ms: int


class Notice(OpenVocabulary):
    """What a coordinator has to tell a node, in words; the node asks for more."""

    DIAL_BACK = "dial_back"  # buyers could not dial you, or we cannot: ask to be dialled
    TWIN = "twin"  # another process runs with your key
    OUTRANKED = "outranked"  # a later process of yours is known, which is gone: offer anew


@dataclass(frozen=True, slots=True)
class LoadAck:
    """The reply itself is the sign of life."""

    notices: tuple[Notice, ...] = added(())

    def __post_init__(self) -> None:
        check(len(self.notices) <= LIST_ITEMS_MAX, "too many notices")


@dataclass(frozen=True, slots=True)
class ReceiptAsk:
    """A node hands in a receipt from its outbox, with the client's acceptance if it came."""

    receipt: bytes
    acceptance: bytes = b""
