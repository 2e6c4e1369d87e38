"""What a decision is about and what comes out of it; no logic."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

from coordinator.market.matching.claim import Claim
from protocol.envelope import Signed
from protocol.ids import PeerId
from protocol.messages import NO_CONSTRAINTS, Constraints, JobRequest, Objective, Task
from protocol.offers import ModelOffer, NodeOffer
from protocol.pricing import PriceSheet, Units
from protocol.services import QuoteAsk


class Reason(StrEnum):
    """Why a node, or the whole market, cannot take a job."""

    # The job itself.
    UNKNOWN_MODEL = "unknown_model"
    DEADLINE_PASSED = "deadline_passed"
    ATTEMPTS_EXHAUSTED = "attempts_exhausted"
    FALLBACK_NOT_ALLOWED = "fallback_not_allowed"
    # What the client ruled out.
    NOT_IN_ONLY = "not_in_only"
    NOT_IN_ORDER = "not_in_order"
    IGNORED = "ignored"
    ALREADY_TRIED = "already_tried"
    PRICE_ABOVE_MAX = "price_above_max"
    COST_ABOVE_MAX = "cost_above_max"
    QUANTIZATION = "quantization"
    REGION = "region"
    ISOLATION_TOO_WEAK = "isolation_too_weak"
    DATA_COLLECTION = "data_collection"
    FEATURES = "features"
    LATENCY_ABOVE_MAX = "latency_above_max"
    DEADLINE_TOO_SOON = "deadline_too_soon"
    # What the node cannot do at all.
    NOT_OFFERED = "not_offered"
    WRONG_TASK = "wrong_task"
    CONTEXT_TOO_SHORT = "context_too_short"
    # What it cannot do now.
    EXPIRED = "expired"
    UNREACHABLE = "unreachable"
    NOT_DIALABLE = "not_dialable"
    DRAINING = "draining"
    MODEL_UNAVAILABLE = "model_unavailable"
    KEY_CONFLICT = "key_conflict"
    BUSY = "busy"
    MACHINE_UNPROVEN = "machine_unproven"
    BREAKER_OPEN = "breaker_open"
    COOLING_DOWN = "cooling_down"


# These pass by themselves, and soon: a job that waits a little may fit.
PASSING = frozenset(
    {Reason.BUSY, Reason.MACHINE_UNPROVEN, Reason.BREAKER_OPEN, Reason.COOLING_DOWN}
)


class Why(StrEnum):
    """How a candidate got its place."""

    ORDERED = "ordered"  # the client put it there
    KEEPS_CACHE = "keeps_cache"  # it ran the conversation so far
    EXPLORED = "explored"  # new here, and it was the turn of a new one
    BEST = "best"  # no other score comes near
    LESS_LOADED = "less_loaded"  # of two near-equals drawn at random
    NEAR_EQUAL = "near_equal"  # the other one of the two
    NEXT = "next"  # by score, after the near-equals


@dataclass(frozen=True, slots=True)
class Vantage:
    """Where a job's client stands. `rtt_ms` are its own round trips to nodes, which count instead
    of ours. One that `dials` reaches a node at the addresses of its offer only; our own gateway has
    the connection that the node made."""

    rtt_ms: Mapping[PeerId, float] = field(default_factory=lambda: MappingProxyType({}))
    dials: bool = False


# Of our own clients, which stand where we stand.
HERE = Vantage()


@dataclass(frozen=True, slots=True)
class Job:
    """What matching needs to know of a job. `exclude` are nodes that were already tried, `resting`
    nodes that refused this client lately, and until when; `cache_at` is the node that ran how the
    input begins, and `vantage` says where the client stands."""

    model: str
    task: Task
    expected: Units
    maximum: Units
    objective: Objective = Objective.BALANCED
    constraints: Constraints = NO_CONSTRAINTS
    deadline_at_ms: int | None = None
    exclude: frozenset[PeerId] = frozenset()
    resting: Mapping[PeerId, int] = field(default_factory=dict)
    is_batch: bool = False
    is_ahead: bool = False
    cache_at: PeerId | None = None
    vantage: Vantage = HERE

    @classmethod
    def of_request(cls, request: JobRequest, *, exclude: frozenset[PeerId]) -> "Job":
        return cls(
            request.model,
            request.task,
            request.units_expected,
            request.units_max,
            request.objective,
            request.constraints,
            request.deadline_at_ms,
            exclude,
            is_batch=request.is_batch,
            is_ahead=request.is_ahead,
        )

    @property
    def needs_idle_seat(self) -> bool:
        return self.is_batch or self.is_ahead

    @classmethod
    def of_quote(cls, ask: QuoteAsk) -> "Job":
        return cls(
            ask.model,
            ask.task,
            ask.units_expected,
            ask.units_max,
            ask.objective,
            ask.constraints,
        )


@dataclass(frozen=True, slots=True)
class Latency:
    """Expected times, corrected by what was measured of the node."""

    rtt_ms: float
    queue_ms: float
    prefill_ms: float  # up to and including the first token
    decode_ms: float  # the tokens after it
    load_ms: float = 0.0  # until a cold model is there, as its node says

    @property
    def first_output_ms(self) -> float:
        return self.rtt_ms + self.queue_ms + self.load_ms + self.prefill_ms

    @property
    def total_ms(self) -> float:
        return self.first_output_ms + self.decode_ms


@dataclass(frozen=True, slots=True)
class Candidate:
    """A node that fits. `score` is lower for better and comparable within one decision only;
    `is_over_limit` says that we expect it to miss `max_latency` or the deadline, and that no
    better node was found. `claim` is kept with the lease, to learn from how the job went."""

    offer: Signed[NodeOffer]
    model: ModelOffer
    price: PriceSheet
    cost_nano: int
    ceiling_nano: int
    latency: Latency
    score: float
    success: float
    load: float
    why: Why
    is_over_limit: bool
    claim: Claim

    @property
    def node(self) -> PeerId:
        return self.offer.message.node


@dataclass(frozen=True, slots=True)
class Rejection:
    """One node that does not fit, with every reason."""

    node: PeerId
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True)
class Match:
    """Candidates, best first. The rest is filled in if there are none, or on demand.

    `counts` says how many nodes each reason keeps away (a node may count several times), `alone`
    how many it keeps away all by itself: what would be won by relaxing just that. A reason that
    lies in the job counts once. `retry_after_ms` is when the first node that only needs a moment
    should be back; None if waiting does not help.
    """

    candidates: tuple[Candidate, ...]
    considered: int = 0
    counts: dict[Reason, int] = field(default_factory=dict)
    alone: dict[Reason, int] = field(default_factory=dict)
    rejections: tuple[Rejection, ...] = ()
    retry_after_ms: int | None = None
