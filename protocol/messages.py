"""The messages that parties sign about one job.

Each names the digest of the one before it: JobRequest (client) → Lease (coordinator) → Receipt
(node) → Acceptance (client). `__post_init__` states the bounds of single fields; rules that need
time or another message are in `protocol.receipts`. What nodes say of themselves is in
`protocol.offers`.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import ClassVar

from protocol.codec import added
from protocol.endings import Finish
from protocol.features import Feature
from protocol.fields import check, check_names, check_optional_digest, check_stamps
from protocol.ids import Digest, JobId, LeaseId, PeerId, is_digest, parse_ulid
from protocol.limits import (
    AFFINITIES_MAX,
    AFFINITY_BYTES,
    JOB_DURATION_MAX_MS,
    NAME_CHARS_MAX,
    PARTS_MAX,
    PAYLOAD_BYTES_MAX,
    SIGNED_BYTES_MAX,
    STOP_STRINGS_MAX,
    TOKENS_MAX,
    WINDOW_TOKENS_MAX,
    WINDOW_TOKENS_MIN,
)
from protocol.money import AMOUNT_NANO_MAX
from protocol.pricing import PriceSheet, Units
from protocol.windows import Countersigned


class Task(StrEnum):
    """What a model does; decides engine, payload and units."""

    CAUSAL_LM = "causal_lm"
    EMBEDDING = "embedding"
    IMAGE_CLASSIFICATION = "image_classification"
    TENSOR = "tensor"


class IsolationTier(StrEnum):
    """How a worker is confined, as proven by the node's own self-test; weakest first. With a GPU a
    sandbox is weaker than without, because requests to the card's driver stay open."""

    NONE = "none"
    LANDLOCK_GPU = "landlock_gpu"
    LANDLOCK = "landlock"
    BWRAP_GPU = "bwrap_gpu"
    BWRAP = "bwrap"

    @property
    def rank(self) -> int:
        """`landlock_gpu` meets a demand for `landlock`, which every job makes that says nothing:
        else no GPU would run it."""
        return _TIER_RANKS[self]

    @property
    def in_offers(self) -> "IsolationTier":
        """The strongest tier of the protocol's first version that it is no weaker than."""
        return IsolationTier.LANDLOCK if self in _GPU_TIERS else self

    @property
    def with_gpu(self) -> "IsolationTier":
        """What this sandbox is for a worker that has a GPU."""
        return _WITH_GPU.get(self, self)


_TIER_RANKS = {
    IsolationTier.NONE: 0,
    IsolationTier.LANDLOCK_GPU: 1,
    IsolationTier.LANDLOCK: 1,
    IsolationTier.BWRAP_GPU: 2,
    IsolationTier.BWRAP: 3,
}
_WITH_GPU = {
    IsolationTier.LANDLOCK: IsolationTier.LANDLOCK_GPU,
    IsolationTier.BWRAP: IsolationTier.BWRAP_GPU,
}
_GPU_TIERS = frozenset(_WITH_GPU.values())


class DataCollection(StrEnum):
    """Whether a node may keep prompts (OpenRouter's word for it)."""

    ALLOW = "allow"
    DENY = "deny"


class Objective(StrEnum):
    """What the client would rather have of two nodes that both fit."""

    PRICE = "price"
    LATENCY = "latency"
    THROUGHPUT = "throughput"
    BALANCED = "balanced"


@dataclass(frozen=True, slots=True)
class PriceCap:
    """The most a client pays per position, in nano-credits; None is no cap."""

    prompt_nano_per_mtok: int | None = None
    completion_nano_per_mtok: int | None = None
    image_nano: int | None = None
    request_nano: int | None = None
    tensor_nano_per_kelement: int | None = None
    cached_nano_per_mtok: int | None = None


@dataclass(frozen=True, slots=True)
class Constraints:
    """What a node must satisfy. Names are OpenRouter's where they exist there."""

    max_price: PriceCap = PriceCap()
    max_cost_nano: int | None = None
    max_latency_ms: int | None = None
    order: tuple[PeerId, ...] = ()
    only: tuple[PeerId, ...] = ()
    ignore: tuple[PeerId, ...] = ()
    allow_fallbacks: bool = True
    quantizations: tuple[str, ...] = ()
    regions: tuple[str, ...] = ()
    isolation: IsolationTier = IsolationTier.LANDLOCK
    data_collection: DataCollection = DataCollection.ALLOW
    # What the model must be able to do: see `protocol.features`.
    features: tuple[str, ...] = ()
    # Wishes: nodes that should not meet them come after those that should.
    preferred_latency_ms: int | None = None
    preferred_tps: int | None = None

    def __post_init__(self) -> None:
        for what in ("order", "only", "ignore", "quantizations", "regions", "features"):
            check_names(getattr(self, what), what)


NO_CONSTRAINTS = Constraints()


@dataclass(frozen=True, slots=True)
class JobRequest:
    """Signed by the client: buy this much of this model, for at most this, before then.

    `model` is a manifest digest or a name; `units_max` bounds what may be billed; `units_expected`
    is the client's guess, for matching only. `payload_digest` pins the input without showing it: it
    is salted (see `protocol.payload`). A client that leases ahead of its jobs leaves it out: then
    `payload_bytes` is the most that may come, and the opening of the lease pins the payload (see
    `protocol.late_payloads`). A purchase that goes on after a cut asks again with the same
    job id and a higher `part`; `delivered_digest` is the output digest of what it has by then.
    A batch job runs only where a seat is idle, lets others go first, and pays the batch price.
    `affinity` are keyed hashes of how its input begins, longest beginning first: requests that
    share one do well on the node that has seen it. They say nothing to others than the client. A
    client that `counts_cached` knows of cached tokens, and pays less for them.
    """

    KIND: ClassVar[str] = "job_request"
    BYTES_MAX: ClassVar[int] = SIGNED_BYTES_MAX

    job_id: JobId
    client: PeerId
    coordinator: PeerId
    model: str
    task: Task
    payload_digest: Digest | None
    payload_bytes: int
    units_max: Units
    units_expected: Units
    objective: Objective
    constraints: Constraints
    issued_at_ms: int
    deadline_at_ms: int
    part: int = 0
    delivered_digest: Digest | None = None
    is_batch: bool = False
    affinity: tuple[bytes, ...] = ()
    counts_cached: bool = added(False)

    def __post_init__(self) -> None:
        parse_ulid(self.job_id)
        check(0 < len(self.model) <= NAME_CHARS_MAX, "the model's name is empty or too long")
        check_optional_digest(self.payload_digest, "the payload digest")
        check(0 < self.payload_bytes <= PAYLOAD_BYTES_MAX, "the payload's size is out of range")
        check(self.units_max != Units(), "the job may not use anything")
        check(self.units_expected.fits_in(self.units_max), "expected units exceed the maximum")
        check_stamps(self.issued_at_ms, self.deadline_at_ms)
        check(
            0 < self.deadline_at_ms - self.issued_at_ms <= JOB_DURATION_MAX_MS,
            "the deadline is before the request or too far after it",
        )
        check(0 <= self.part < PARTS_MAX, "the part is out of range")
        check_optional_digest(self.delivered_digest, "the digest of what was delivered")
        check(self.part > 0 or self.delivered_digest is None, "the first part follows no output")
        check(len(self.affinity) <= AFFINITIES_MAX, "there are too many affinity keys")
        check(
            all(len(key) == AFFINITY_BYTES for key in self.affinity),
            f"an affinity key has {AFFINITY_BYTES} bytes",
        )
        check(not self.is_ahead or self._may_be_ahead, "this request has to pin its payload")

    @property
    def is_ahead(self) -> bool:
        """Whether it asks for a lease before its job is known."""
        return self.payload_digest is None

    @property
    def needs_idle_seat(self) -> bool:
        """Whether it takes no seat for which others may wait."""
        return self.is_batch or self.is_ahead

    @property
    def _may_be_ahead(self) -> bool:
        """Only nodes that know of such requests may be leased, and only for what begins."""
        is_plain = not (self.part or self.is_batch or self.affinity)
        return is_plain and Feature.LATE_PAYLOAD in self.constraints.features


@dataclass(frozen=True, slots=True)
class Lease:
    """Signed by the coordinator: funds are held; this node may run this request at this price.

    `window_tokens` is how much output the client signs for at a time, and so what either can lose
    (see `protocol.windows`). `pays_tails` says whether output beyond the client's last signature is
    paid, up to a window. `client_standing` tells the node whom it works for: 0 is a client with a
    bad record, 1 a stranger, 9 the best. `incarnation_ms` is the node's process that was matched.
    """

    KIND: ClassVar[str] = "lease"
    BYTES_MAX: ClassVar[int] = SIGNED_BYTES_MAX

    lease_id: LeaseId
    request_digest: Digest
    job_id: JobId
    attempt: int
    client: PeerId
    node: PeerId
    coordinator: PeerId
    offer_digest: Digest
    model_digest: Digest
    price: PriceSheet
    units_max: Units
    ceiling_nano: int
    issued_at_ms: int
    open_before_ms: int
    deadline_at_ms: int
    window_tokens: int = WINDOW_TOKENS_MIN
    client_standing: int = 1
    pays_tails: bool = True
    incarnation_ms: int = 0

    def __post_init__(self) -> None:
        parse_ulid(self.lease_id)
        parse_ulid(self.job_id)
        for digest in (self.request_digest, self.offer_digest, self.model_digest):
            check(is_digest(digest), "a digest is not a sha256")
        check(0 <= self.attempt <= 64, "the attempt is out of range")
        check(0 <= self.ceiling_nano <= AMOUNT_NANO_MAX, "the ceiling is out of range")
        check_stamps(self.issued_at_ms, self.open_before_ms, self.deadline_at_ms)
        check_stamps(self.incarnation_ms)
        check(
            WINDOW_TOKENS_MIN <= self.window_tokens <= WINDOW_TOKENS_MAX,
            "the window is out of range",
        )
        check(0 <= self.client_standing <= 9, "the client's standing is out of range")


@dataclass(frozen=True, slots=True)
class Receipt:
    """Signed by the node when a leased job ended, however it ended: what it delivered and costs.

    `output_digest` is `protocol.payload.OutputDigest` over what was streamed. `opening` is the
    client's `JobOpening` as it was signed, and `countersigned` the client's last links: without
    them, and without an acceptance, a receipt is the node's word alone. The fields after those
    serve later checks of the result: digest of the input's token ids, how many of them were a
    prefix, the token that ended the answer, what computed it, a root over its trace, and which of
    the input's stop strings ended it.
    """

    KIND: ClassVar[str] = "receipt"
    BYTES_MAX: ClassVar[int] = SIGNED_BYTES_MAX

    lease_id: LeaseId
    lease_digest: Digest
    job_id: JobId
    node: PeerId
    client: PeerId
    coordinator: PeerId
    model_digest: Digest
    units: Units
    amount_nano: int
    output_digest: Digest
    finish: Finish
    code: str
    queued_ms: int
    first_output_ms: int
    total_ms: int
    issued_at_ms: int
    opening: bytes = b""
    countersigned: Countersigned | None = None
    input_digest: Digest | None = None
    prefix_tokens: int = 0
    end_token: int | None = None
    profile: str = ""
    trace_root: bytes = b""
    end_stop: int | None = None

    def __post_init__(self) -> None:
        parse_ulid(self.lease_id)
        parse_ulid(self.job_id)
        for digest in (self.lease_digest, self.model_digest, self.output_digest):
            check(is_digest(digest), "a digest is not a sha256")
        check(0 <= self.amount_nano <= AMOUNT_NANO_MAX, "the amount is out of range")
        check(len(self.code) <= 64, "the code is too long")
        check_stamps(self.queued_ms, self.first_output_ms, self.total_ms, self.issued_at_ms)
        check(len(self.opening) <= SIGNED_BYTES_MAX // 8, "the opening is too long")
        check_optional_digest(self.input_digest, "the input digest")
        check(0 <= self.prefix_tokens <= TOKENS_MAX, "the prefix is out of range")
        check(self.end_token is None or 0 <= self.end_token < 2**31, "no such token id")
        check(len(self.profile) <= NAME_CHARS_MAX, "the profile is too long")
        check(len(self.trace_root) in (0, 32), "the trace root is not a sha256")
        is_stop = self.end_stop is None or 0 <= self.end_stop < STOP_STRINGS_MAX
        check(is_stop, "no such stop string")


@dataclass(frozen=True, slots=True)
class Acceptance:
    """Signed by the client: what it counted of the same stream. `agrees` is its verdict."""

    KIND: ClassVar[str] = "acceptance"
    BYTES_MAX: ClassVar[int] = SIGNED_BYTES_MAX

    receipt_digest: Digest
    lease_id: LeaseId
    client: PeerId
    units: Units
    output_digest: Digest
    agrees: bool
    issued_at_ms: int

    def __post_init__(self) -> None:
        parse_ulid(self.lease_id)
        check(is_digest(self.receipt_digest), "the receipt digest is not a sha256")
        check(is_digest(self.output_digest), "the output digest is not a sha256")
        check_stamps(self.issued_at_ms)
