"""One node in the book: its signed offer and what is known of it right now.

The entry is the truth; the rows of the model tables are computed from it.
"""

from dataclasses import dataclass, field

from coordinator.market.offers.table import (
    DRAINING,
    NOT_DIALABLE,
    SUSPENDED,
    UNAVAILABLE,
    UNREACHABLE,
    ModelTable,
    code_of,
    features_mask,
)
from protocol.envelope import Signed
from protocol.ids import Digest, LeaseId, PeerId, is_digest
from protocol.messages import DataCollection, Task
from protocol.offers import ModelLoad, ModelOffer, NodeOffer
from protocol.pricing import PERCENT, PRICE_POSITIONS

TASK_CODES = {task: code for code, task in enumerate(Task)}

# Petals' figure for a peer that it could not ping: most of a round trip across an ocean.
RTT_UNKNOWN_MS = 150.0
# A node that claims no speed is taken for the slowest, so that silence never beats a true claim.
_UNITS_PER_S_UNKNOWN = 1


@dataclass(slots=True)
class ModelState:
    """One model on one node: the offer, what the node last reported, and our own leases there.

    Our own leases we know exactly, and at once; of a report we keep what it says beyond them, the
    jobs of other coordinators. A report is always a little old: counting our jobs from it too would
    count each job that just replaced another twice, and refuse a node that is half empty.
    """

    offer: ModelOffer
    running: int = 0
    queued: int = 0
    is_available: bool = True
    jobs_of_others: int = 0
    leases: set[LeaseId] = field(default_factory=set)
    # Those of them whose jobs give way to any that is not a batch's.
    batch_leases: set[LeaseId] = field(default_factory=set)
    tables: tuple[ModelTable, ...] = ()  # where its row is

    @property
    def busy(self) -> int:
        """Jobs that run or wait there, as far as we can know."""
        return len(self.leases) + self.jobs_of_others

    @property
    def live(self) -> int:
        """Jobs that a job that is not of a batch would have to wait for."""
        return self.busy - len(self.batch_leases)

    def report(self, load: ModelLoad) -> None:
        self.running, self.queued, self.is_available = load.running, load.queued, load.available
        self.jobs_of_others = max(0, load.running + load.queued - len(self.leases))

    def grant(self, lease_id: LeaseId, *, is_batch: bool) -> None:
        self.leases.add(lease_id)
        if is_batch:
            self.batch_leases.add(lease_id)

    def release(self, lease_id: LeaseId) -> None:
        self.leases.remove(lease_id)
        self.batch_leases.discard(lease_id)

    def lose_reports(self) -> None:
        """The node reports no more: only our own leases are certain."""
        self.running = self.queued = self.jobs_of_others = 0


@dataclass(slots=True)
class NodeEntry:
    """One node. `slot` is its row in the reputation matrix, `network` its address block, `machine`
    the row of all nodes there."""

    signed: Signed[NodeOffer]
    received_at_ms: int
    expires_at_ms: int
    slot: int
    tie: int
    network: str
    machine: int
    models: dict[Digest, ModelState]
    rtt_ms: float | None = None
    is_attached: bool = False
    is_heard: bool = False  # Gossip brought this very offer, not its node alone.
    lost_at_ms: int | None = None
    is_draining: bool = False
    is_dialable: bool = True
    suspended_until_ms: int = 0
    suspension: str = ""

    @property
    def node(self) -> PeerId:
        return self.signed.message.node

    @property
    def offer(self) -> NodeOffer:
        return self.signed.message

    def model(self, model: str) -> ModelOffer | None:
        """What it offers under this manifest digest, or else under this name."""
        if is_digest(model):
            state = self.models.get(Digest(model))
            return None if state is None else state.offer
        return next((s.offer for s in self.models.values() if s.offer.name == model), None)

    def flags(self, state: ModelState) -> int:
        return (
            (UNREACHABLE if self.lost_at_ms is not None else 0)
            | (DRAINING if self.is_draining else 0)
            | (0 if state.is_available else UNAVAILABLE)
            | (SUSPENDED if self.suspended_until_ms else 0)
            | (0 if self.is_dialable else NOT_DIALABLE)
        )

    def row_values(self, state: ModelState) -> list[float]:
        """In the order of the rows of `ModelTable.values`."""
        model = state.offer
        return [
            *(position.of(model.price) for position in PRICE_POSITIONS),
            1_000 / (model.prefill_tps or _UNITS_PER_S_UNKNOWN),
            1_000 / (model.decode_tps or _UNITS_PER_S_UNKNOWN),
            model.context_tokens,
            model.slots,
            model.slots + model.queue_max,
            state.busy,
            RTT_UNKNOWN_MS if self.rtt_ms is None else self.rtt_ms,
            self.expires_at_ms,
            model.batch_percent / PERCENT,
            state.live,
            model.load_ms,
        ]

    def row_codes(self, state: ModelState) -> list[int]:
        """In the order of the rows of `ModelTable.codes`."""
        return [
            TASK_CODES[state.offer.task],
            self.offer.tier.rank,
            code_of(self.offer.region),
            code_of(state.offer.quantization),
            int(self.offer.data_collection is DataCollection.ALLOW),
            self.flags(state),
            self.slot,
            self.machine,
            features_mask(state.offer.features),
        ]
