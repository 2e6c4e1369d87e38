"""What nodes say of themselves: the offer that they sign and gossip, and the load that they report.

`__post_init__` states the bounds of single fields. Which of two offers of one node counts is the
market's to decide.
"""

from dataclasses import dataclass
from typing import ClassVar

from protocol.codec import added
from protocol.fields import check, check_names, check_stamps
from protocol.ids import Digest, LeaseId, PeerId, is_digest
from protocol.limits import (
    ADDRESS_CHARS_MAX,
    DIMENSIONS_MAX,
    LOAD_MS_MAX,
    NAME_CHARS_MAX,
    OFFER_ADDRESSES_MAX,
    OFFER_BYTES_MAX,
    OFFER_MODELS_MAX,
    OPENED_LEASES_MAX,
    TOKENS_MAX,
)
from protocol.messages import DataCollection, IsolationTier, Task
from protocol.pricing import PERCENT, PriceSheet, share_of
from protocol.tensors import ModelSignature

# A node with more concurrent jobs than this is several nodes.
SLOTS_MAX = 4_096
# Faster than any hardware of this decade, per stream or in all.
TOKENS_PER_S_MAX = 10_000_000
# The convention of batch interfaces: half the price.
BATCH_PERCENT_DEFAULT = 50
_TIERS = frozenset(tier.value for tier in IsolationTier)


@dataclass(frozen=True, slots=True)
class Hardware:
    """What computes. `kind` is `cpu` or `cuda`; `memory_bytes` is per device."""

    kind: str
    name: str
    memory_bytes: int
    count: int

    def __post_init__(self) -> None:
        check(self.kind in ("cpu", "cuda"), "the hardware kind is neither cpu nor cuda")
        check(len(self.name) <= NAME_CHARS_MAX, "the hardware name is too long")
        check(0 <= self.memory_bytes < 2**50 and 0 < self.count <= 1_024, "implausible hardware")


@dataclass(frozen=True, slots=True)
class ModelOffer:
    """One model on one node. Speeds are the node's claims, `prefill_tps` and `decode_tps` of a
    single stream: in tokens per second, or images or tensor elements where the task counts those.
    `features` are words of `protocol.features.Feature`; unknown ones of a later version are passed
    on. `chat_format` names an entry of `protocol.chat_formats`, and is empty for a model that does
    not chat. `signature` is what a tensor model takes and answers, `dimensions` how many numbers an
    embedding has; 0 is unknown. `load_ms` is how long a job waits until a cold model is loaded: one
    that is not in memory; 0 while it is."""

    name: str
    manifest_digest: Digest
    task: Task
    quantization: str
    context_tokens: int
    slots: int
    queue_max: int
    prefill_tps: int
    decode_tps: int
    price: PriceSheet
    features: tuple[str, ...] = ()
    chat_format: str = ""
    # What a batch job pays of each price, on seats that would be idle.
    batch_percent: int = BATCH_PERCENT_DEFAULT
    signature: ModelSignature | None = None
    dimensions: int = 0
    load_ms: int = added(0)

    def __post_init__(self) -> None:
        check(0 < len(self.name) <= NAME_CHARS_MAX, "the model's name is empty or too long")
        check(is_digest(self.manifest_digest), "the manifest digest is not a sha256")
        check(0 < len(self.quantization) <= 32, "the quantization is empty or too long")
        check(0 <= self.context_tokens <= TOKENS_MAX, "the context is out of range")
        check(0 < self.slots <= SLOTS_MAX, "the number of slots is out of range")
        check(0 <= self.queue_max <= SLOTS_MAX, "the queue is out of range")
        check(0 <= self.prefill_tps <= TOKENS_PER_S_MAX, "the prefill speed is out of range")
        check(0 <= self.decode_tps <= TOKENS_PER_S_MAX, "the decode speed is out of range")
        check_names(self.features, "features")
        check(len(self.chat_format) <= NAME_CHARS_MAX, "the chat format's name is too long")
        check(0 <= self.dimensions <= DIMENSIONS_MAX, "the dimensions are out of range")
        check(0 < self.batch_percent <= PERCENT, "the batch price is out of range")
        check(0 <= self.load_ms <= LOAD_MS_MAX, "the load time is out of range")

    def asked_price(self, *, is_batch: bool) -> PriceSheet:
        """What a job pays here: the one rule for coordinator, client and node."""
        return share_of(self.price, self.batch_percent) if is_batch else self.price


@dataclass(frozen=True, slots=True)
class NodeOffer:
    """Signed by the node, gossiped on change. `incarnation_ms` is when this process started: a
    restarted node outranks its former self, and within one incarnation `sequence` only grows.
    `isolation` is a tier of the protocol's first version; where a later one has a word of its own
    for what the node does, `isolation_tier` is that word (see `tier`)."""

    KIND: ClassVar[str] = "node_offer"
    BYTES_MAX: ClassVar[int] = OFFER_BYTES_MAX

    node: PeerId
    incarnation_ms: int
    sequence: int
    issued_at_ms: int
    expires_at_ms: int
    addresses: tuple[str, ...]
    region: str
    isolation: IsolationTier
    hardware: Hardware
    models: tuple[ModelOffer, ...]
    software: str
    data_collection: DataCollection = DataCollection.DENY
    isolation_tier: str | None = None

    @property
    def tier(self) -> IsolationTier:
        """How jobs are confined. A word that this version does not know counts as what `isolation`
        says."""
        word = self.isolation_tier
        return IsolationTier(word) if word in _TIERS else self.isolation

    def __post_init__(self) -> None:
        check_stamps(self.incarnation_ms, self.issued_at_ms, self.expires_at_ms)
        check(self.sequence >= 0, "the sequence is negative")
        check(len(self.addresses) <= OFFER_ADDRESSES_MAX, "too many addresses")
        check(all(len(a) <= ADDRESS_CHARS_MAX for a in self.addresses), "an address is too long")
        check(len(self.region) <= NAME_CHARS_MAX, "the region is too long")
        check(len(self.isolation_tier or "") <= NAME_CHARS_MAX, "the tier is too long")
        check(len(self.software) <= NAME_CHARS_MAX, "the software version is too long")
        check(len(self.models) <= OFFER_MODELS_MAX, "too many models")
        names = {model.name for model in self.models}
        digests = {model.manifest_digest for model in self.models}
        check(len(names) == len(digests) == len(self.models), "a model is listed twice")


@dataclass(frozen=True, slots=True)
class ModelLoad:
    """How busy one model is at this moment."""

    manifest_digest: Digest
    running: int
    queued: int
    available: bool

    def __post_init__(self) -> None:
        check(is_digest(self.manifest_digest), "the manifest digest is not a sha256")
        check(0 <= self.running <= SLOTS_MAX, "running is out of range")
        check(0 <= self.queued <= SLOTS_MAX, "queued is out of range")


@dataclass(frozen=True, slots=True)
class LoadReport:
    """Node → coordinator on the control stream, unsigned: the connection proves who speaks.

    `opened` names this coordinator's leases that were opened since the last report that it
    answered: the seat and the money of a lease that is not opened are given back after a minute.
    `arriving` names those whose payloads are not whole at this moment: they take no seat here.
    """

    incarnation_ms: int
    draining: bool
    models: tuple[ModelLoad, ...]
    opened: tuple[LeaseId, ...] = ()
    arriving: tuple[LeaseId, ...] = ()

    def __post_init__(self) -> None:
        check_stamps(self.incarnation_ms)
        check(len(self.models) <= OFFER_MODELS_MAX, "too many models")
        for leases in (self.opened, self.arriving):
            check(len(leases) <= OPENED_LEASES_MAX, "too many leases in one report")
