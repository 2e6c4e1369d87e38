"""The offer book: every live node that offers something, and which of its offers counts.

Fed by gossip (`accept`), by nodes' control streams (`apply_load`, `detach`), by pings (`set_rtt`)
and by our own leases (`grant`, `release`). It decides and remembers; callers do the I/O. The rows
that matching reads are in `index`, the seats that our leases take in `seating`.
"""

import heapq
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from coordinator.market.machines import Machines
from coordinator.market.offers.entry import ModelState, NodeEntry
from coordinator.market.offers.index import (
    OfferIndex,
    publish_busy,
    publish_flags,
    publish_rtt,
)
from coordinator.market.offers.intake import Intake
from coordinator.market.offers.pool import (
    UNPROVEN_BYTES_MAX,
    UnprovenPool,
    cost_of,
    network_of,
)
from coordinator.market.offers.seating import Seating
from coordinator.market.offers.table import ModelTable, tie_of
from coordinator.market.offers.versions import OfferVersion, OfferVersions, Succession, judge
from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import Digest, LeaseId, PeerId
from protocol.limits import CLOCK_SKEW_MAX_MS, OFFER_LIFETIME_MAX_MS
from protocol.offers import LoadReport, NodeOffer
from protocol.services import offer_topic, shard_of

# The scale that the market is designed for; about 0.4 GB of offers.
NODES_MAX = 100_000

# Dropping an offer takes 20 µs. After a partition all of them expire at once, and no request may
# wait for that: matching skips what has expired whether or not it is still listed.
EXPIRE_MAX = 1_000

# Two processes with one key that know of each other offer anew more often than this: silence for
# that long means that one of them is gone.
SUSPENSION_MS = 45_000

KEY_CONFLICT = "two running nodes sign with this key: stop one, or make it a key of its own"

# RFC 6298's smoothing: one slow ping is weather, ten are climate.
_RTT_GAIN = 1 / 8


class OfferOutcome(StrEnum):
    """What became of an offer."""

    LISTED = "listed"
    UPDATED = "updated"
    HEARD = "heard"  # By gossip, after its node had handed it over.
    DUPLICATE = "duplicate"
    REFUSED = "refused"
    CONFLICT = "conflict"


@dataclass(frozen=True, slots=True)
class OfferVerdict:
    """`code` and `message` say why an offer was not taken; None and empty if it was."""

    outcome: OfferOutcome
    node: PeerId | None = None
    code: Code | None = None
    message: str = ""

    @property
    def is_news(self) -> bool:
        """Worth handing on to neighbours. A conflict is not: a thief of a key could make the
        whole network carry any number of its offers."""
        return self.outcome in (OfferOutcome.LISTED, OfferOutcome.UPDATED, OfferOutcome.HEARD)


class ReputationRows(Protocol):
    """Gives each node a row in the reputation matrix, and takes it back."""

    def pin(self, node: PeerId) -> int: ...

    def unpin(self, node: PeerId) -> None: ...


class OfferBook:
    """All live offers. `catalogue` is the index's: which digests may answer to a model's name."""

    def __init__(
        self,
        slots: ReputationRows,
        *,
        catalogue: Mapping[str, frozenset[Digest]] | None = None,
        nodes_max: int = NODES_MAX,
        unproven_bytes_max: int = UNPROVEN_BYTES_MAX,
        machines: Machines | None = None,
    ) -> None:
        self._slots = slots
        self.machines = machines or Machines()
        self._nodes_max = nodes_max
        self._intake = Intake()
        self._versions = OfferVersions()
        self._unproven = UnprovenPool(unproven_bytes_max)
        self._entries: dict[PeerId, NodeEntry] = {}
        self._index = OfferIndex(catalogue or {})
        self._seating = Seating(self._entries, self.machines)
        self._expiries: list[tuple[int, PeerId]] = []

    # Reading.

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[NodeEntry]:
        return iter(self._entries.values())

    def get(self, node: PeerId) -> NodeEntry | None:
        return self._entries.get(node)

    def table(self, model: str) -> ModelTable | None:
        """The offers of a manifest digest or of a name; None if there are none."""
        return self._index.table(model)

    def models(self) -> dict[str, int]:
        """How many nodes offer each model name."""
        return self._index.models()

    def page(self, *, model: str = "", after: str = "", limit: int) -> list[NodeEntry]:
        """The next nodes after this id that offer `model` (any if empty), in order of ids."""
        table = self.table(model) if model else None
        nodes = self._entries if not model else table.nodes if table else ()
        page = heapq.nsmallest(limit, (node for node in nodes if node > after))
        return [self._entries[node] for node in page]

    # Offers.

    def accept(
        self,
        raw: bytes,
        *,
        now_ms: int,
        via: PeerId,
        topic: str | None = None,
        signer: PeerId | None = None,
    ) -> OfferVerdict:
        """Check an offer as it came from the neighbour `via` (on `topic`, if by gossip), and list
        it if it is good and new, and of `signer` if one is named."""
        try:
            signed = self._intake.open(raw, now_ms=now_ms, via=via, topic=topic, signer=signer)
        except RemoteProtocolError as error:
            if error.code is not Code.REPLAYED:
                return OfferVerdict(OfferOutcome.REFUSED, None, error.code, str(error))
            outcome = self._hear_again(raw, topic)
            return OfferVerdict(outcome, None, error.code, str(error))
        verdict = self.insert(signed, now_ms=now_ms, via=via)
        entry = self._entries.get(signed.signer)
        if verdict.is_news and entry is not None:
            entry.is_heard = topic is not None
        return verdict

    def insert(
        self, signed: Signed[NodeOffer], *, now_ms: int, via: PeerId | None = None
    ) -> OfferVerdict:
        """List a verified offer unless a better one of the same node is known."""
        offer = signed.message
        known = self._versions.get(offer.node)
        succession = judge(known, offer, signed.digest)
        if succession is Succession.SAME:
            return OfferVerdict(OfferOutcome.DUPLICATE, offer.node, Code.REPLAYED, "already listed")
        if succession is Succession.OLDER:
            return OfferVerdict(
                OfferOutcome.REFUSED,
                offer.node,
                Code.OFFER_REGRESSED,
                "a later offer of this node is known",
            )
        if succession is Succession.CONFLICT:
            return self._suspend(offer, now_ms)
        if offer.node not in self._entries and not self._make_room(signed, via):
            return OfferVerdict(
                OfferOutcome.REFUSED,
                offer.node,
                Code.RATE_LIMITED,
                "there is no room, and most of what is listed came the same way",
            )
        return self._list(signed, now_ms)

    def expire(self, now_ms: int) -> tuple[PeerId, ...]:
        """Drop leases and suspensions whose time is over, and up to EXPIRE_MAX offers. Returns the
        nodes that left."""
        gone: list[PeerId] = []
        while self._expiries and self._expiries[0][0] <= now_ms and len(gone) < EXPIRE_MAX:
            _, node = heapq.heappop(self._expiries)
            entry = self._entries.get(node)
            if entry is None:
                continue
            if entry.expires_at_ms <= now_ms:
                self._unlist(entry)
                gone.append(node)
            elif 0 < entry.suspended_until_ms <= now_ms:
                self.reinstate(node)
        self._seating.expire(now_ms)
        self._versions.forget(now_ms)
        return tuple(gone)

    # Live state.

    def apply_load(self, node: PeerId, report: LoadReport) -> bool:
        """Take over a report from the node's control stream. Returns False if it is of another
        incarnation than the offer, or of a node that offers nothing: then nothing changes."""
        entry = self._entries.get(node)
        if entry is None or report.incarnation_ms != entry.offer.incarnation_ms:
            return False
        self._prove(entry)
        entry.is_attached = True
        entry.lost_at_ms = None
        entry.is_draining = report.draining
        for load in report.models:
            state = entry.models.get(load.manifest_digest)
            if state is not None:
                state.report(load)
                publish_busy(entry, state)
        publish_flags(entry)
        return True

    def detach(self, node: PeerId, *, now_ms: int) -> None:
        """Its control stream broke or fell silent: no jobs until it reports or offers anew."""
        entry = self._entries.get(node)
        if entry is not None:
            entry.is_attached = False
            entry.lost_at_ms = now_ms
            for other in self._unproven.take_back(node, entry.network, cost_of(entry.signed)):
                self._evict(other)
            for state in entry.models.values():
                state.lose_reports()
                publish_busy(entry, state)
            publish_flags(entry)

    def set_dialable(self, node: PeerId, *, is_dialable: bool) -> None:
        """Whether a buyer can dial the node where its offer says; unknown nodes are ignored."""
        entry = self._entries.get(node)
        if entry is not None and entry.is_dialable != is_dialable:
            entry.is_dialable = is_dialable
            publish_flags(entry)

    def suspend(self, node: PeerId, *, now_ms: int, for_ms: int) -> None:
        """Two processes of this node are heard: no jobs for now, unless this is known already."""
        entry = self._entries.get(node)
        if entry is None or entry.suspended_until_ms >= now_ms + for_ms:
            return
        entry.suspended_until_ms, entry.suspension = now_ms + for_ms, KEY_CONFLICT
        heapq.heappush(self._expiries, (entry.suspended_until_ms, node))
        publish_flags(entry)

    def reinstate(self, node: PeerId) -> None:
        """The other process is gone."""
        entry = self._entries.get(node)
        if entry is not None:
            entry.suspended_until_ms, entry.suspension = 0, ""
            publish_flags(entry)

    def set_rtt(self, node: PeerId, rtt_ms: float) -> None:
        """Take a measured round trip into the smoothed one; unknown nodes are ignored."""
        entry = self._entries.get(node)
        if entry is None:
            return
        self._prove(entry)
        old_ms = rtt_ms if entry.rtt_ms is None else entry.rtt_ms
        entry.rtt_ms = old_ms + (rtt_ms - old_ms) * _RTT_GAIN
        publish_rtt(entry, entry.rtt_ms)

    def grant(
        self,
        lease_id: LeaseId,
        node: PeerId,
        model: Digest,
        *,
        expires_at_ms: int,
        is_batch: bool = False,
    ) -> None:
        """Count a job against the node from now, or from when it offers the model, until `release`
        or until it expires. A batch's gives way to others."""
        self._seating.grant(lease_id, node, model, expires_at_ms=expires_at_ms, is_batch=is_batch)

    def release(self, lease_id: LeaseId) -> bool:
        """The leased job ended, or never began; unknown ids are ignored. Returns whether a seat is
        free now that was not."""
        return self._seating.release(lease_id)

    # Below: listing.

    def _hear_again(self, raw: bytes, topic: str | None) -> OfferOutcome:
        """Bytes that were taken before. A node attaches and publishes at the same time: what the
        attach brought first is no news to us, but it is to our neighbours."""
        entry = self._entries.get(self._intake.signer_of(raw))
        if entry is None or entry.is_heard or entry.signed.raw != raw:
            return OfferOutcome.DUPLICATE
        if topic != offer_topic(shard_of(entry.node)):
            return OfferOutcome.DUPLICATE
        entry.is_heard = True
        return OfferOutcome.HEARD

    def _list(self, signed: Signed[NodeOffer], now_ms: int) -> OfferVerdict:
        offer = signed.message
        # The skew is the node's clock's, not its right to live longer than others.
        expires_at_ms = min(offer.expires_at_ms + CLOCK_SKEW_MAX_MS, now_ms + OFFER_LIFETIME_MAX_MS)
        forget_at_ms = expires_at_ms + 2 * CLOCK_SKEW_MAX_MS
        self._versions.put(
            offer.node,
            OfferVersion(offer.incarnation_ms, offer.sequence, signed.digest, forget_at_ms),
        )
        old = self._entries.get(offer.node)
        if old is None:
            entry = NodeEntry(
                signed=signed,
                received_at_ms=now_ms,
                expires_at_ms=expires_at_ms,
                slot=self._slots.pin(offer.node),
                tie=tie_of(offer.node),
                network=network_of(offer.addresses),
                machine=self.machines.pin(network_of(offer.addresses)),
                models={m.manifest_digest: ModelState(m) for m in offer.models},
            )
            self._seating.seat_early(entry)
            self._entries[offer.node] = entry
        else:
            entry = old
            self._replace(entry, signed, now_ms, expires_at_ms)
            for node in self._unproven.resize(offer.node, cost_of(signed)):
                self._evict(node)
        heapq.heappush(self._expiries, (expires_at_ms, offer.node))
        if offer.node in self._entries:
            self._index.publish(entry)
        return OfferVerdict(
            OfferOutcome.LISTED if old is None else OfferOutcome.UPDATED, offer.node
        )

    def _replace(
        self, entry: NodeEntry, signed: Signed[NodeOffer], now_ms: int, expires_at_ms: int
    ) -> None:
        offer = signed.message
        has_restarted = offer.incarnation_ms != entry.offer.incarnation_ms
        self._index.unpublish(entry)
        if offer.addresses != entry.offer.addresses:
            entry.is_dialable = True
        old_states = entry.models
        entry.models = {}
        for model in offer.models:
            kept = None if has_restarted else old_states.pop(model.manifest_digest, None)
            state = kept or ModelState(model)
            state.offer = model
            entry.models[model.manifest_digest] = state
        for state in old_states.values():
            self._seating.leave(entry, state)
        self._seating.move(entry, network_of(offer.addresses))
        self._seating.seat_early(entry)
        if has_restarted:
            entry.is_attached = entry.is_draining = False
        if entry.lost_at_ms is not None and offer.issued_at_ms > entry.lost_at_ms:
            # Signed after we lost it, and not an earlier offer that gossip brings late.
            entry.lost_at_ms = None
        entry.signed = signed
        entry.received_at_ms = now_ms
        entry.expires_at_ms = expires_at_ms

    def _unlist(self, entry: NodeEntry) -> None:
        self._index.unpublish(entry)
        for state in entry.models.values():
            self._seating.leave(entry, state)
        self._unproven.leave(entry.node)
        self.machines.unpin(entry.network)
        self._slots.unpin(entry.node)
        del self._entries[entry.node]

    def _make_room(self, signed: Signed[NodeOffer], via: PeerId | None) -> bool:
        offer = signed.message
        group = via if via is not None else network_of(offer.addresses)
        is_full = len(self._entries) >= self._nodes_max
        evicted = self._unproven.admit(offer.node, group, cost_of(signed), is_book_full=is_full)
        for node in evicted or ():
            self._evict(node)
        return evicted is not None

    def _evict(self, node: PeerId) -> None:
        """Forget an offer to make room. If it comes again it is judged anew."""
        entry = self._entries.get(node)
        if entry is not None:
            self._unlist(entry)
            self._versions.drop(node)
            self._intake.forget(entry.signed.raw)

    def _prove(self, entry: NodeEntry) -> None:
        """We talk to the node ourselves."""
        self._unproven.leave(entry.node)

    def _suspend(self, offer: NodeOffer, now_ms: int) -> OfferVerdict:
        self.suspend(offer.node, now_ms=now_ms, for_ms=SUSPENSION_MS)
        return OfferVerdict(OfferOutcome.CONFLICT, offer.node, Code.OFFER_CONFLICT, KEY_CONFLICT)
