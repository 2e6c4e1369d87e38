"""Whether to run a job: decisions about signed evidence, prices, room and isolation. No I/O here.

`check_evidence` answers "is this lease real, ours and unused?". What fails there is told without a
receipt: signing one for a lease that was used already would bill it twice. From then on the lease
is spent, and what `admit` refuses is refused with a signed receipt of nothing, which frees the
client's hold at once.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from capanode.announce import OwnOffers
from capanode.opened_leases import OpenedLeases
from capanode.served import ServedModel
from protocol.envelope import Signed
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import Digest, LeaseId, PeerId
from protocol.limits import CLOCK_SKEW_MAX_MS, LEASE_OPEN_WITHIN_MS, LOAD_UNTOLD_MS_MAX, MIB
from protocol.messages import DataCollection, IsolationTier, JobRequest, Lease
from protocol.net.shares import Shares
from protocol.receipts import check_lease

# Leases are remembered for about a minute: this is a thousand a second, far above any node.
LEASES_REMEMBERED_MAX = 65_536

# Payloads that are still arriving, all clients together: sixteen of the largest. A payload that
# comes whole with JOB_OPEN is no upload.
UPLOAD_BYTES_MAX = 128 * MIB
# A client's share of that. Where several clients fill the room, the upload of the largest of them
# that is closest to being too slow gives way to a newcomer.
UPLOAD_BYTES_PER_CLIENT_MAX = 32 * MIB


@dataclass(frozen=True, slots=True)
class AdmissionRules:
    """What the operator and the machine decide."""

    node: PeerId
    coordinators: frozenset[PeerId]
    isolation: IsolationTier
    data_collection: DataCollection
    per_client_max: int


@dataclass(slots=True, eq=False)
class Ticket:
    """A job that was admitted; give it back with `release`. If its payload still arrives,
    `upload_due_at` is when it will be too slow unless more of it comes, and `evict` is called at
    most once, if its room is needed for another client's."""

    lease_id: LeaseId
    client: PeerId
    model: ServedModel
    is_batch: bool = False
    upload_due_at: float = 0.0
    evict: Callable[[], None] = lambda: None


class SpentLeases:
    """Leases that were opened here, until they could not be opened anyway.

    A restart forgets them, but then no lease is in order any more: each names an offer, and a
    restarted node has made new ones.
    """

    def __init__(self, *, remembered_max: int = LEASES_REMEMBERED_MAX) -> None:
        self._remembered_max = remembered_max
        self._ids: set[LeaseId] = set()
        self._by_expiry: list[tuple[int, LeaseId]] = []

    def spend(self, lease: Lease, *, now_ms: int) -> None:
        """Raises RemoteProtocolError: REPLAYED, or BUSY if too many are remembered."""
        while self._by_expiry and self._by_expiry[0][0] <= now_ms:
            self._ids.discard(heapq.heappop(self._by_expiry)[1])
        if lease.lease_id in self._ids:
            raise RemoteProtocolError("this lease was opened before", code=Code.REPLAYED)
        if len(self._ids) >= self._remembered_max:
            raise RemoteProtocolError("too many leases at once", code=Code.BUSY)
        self._ids.add(lease.lease_id)
        expiry = (lease.open_before_ms + CLOCK_SKEW_MAX_MS, lease.lease_id)
        heapq.heappush(self._by_expiry, expiry)


class Admission:
    """See the module docstring. `storage_failure` says why no receipt can be kept, if so, and
    `is_paused` whether none is taken for now. The owner may change `rules` at any time."""

    def __init__(
        self,
        rules: AdmissionRules,
        models: Mapping[Digest, ServedModel],
        offers: OwnOffers,
        *,
        storage_failure: Callable[[], str],
        is_paused: Callable[[], bool] = bool,
    ) -> None:
        self.is_draining = False
        self.rules = rules
        self._is_paused = is_paused
        self._models = models
        self._offers = offers
        self._storage_failure = storage_failure
        self.opened = OpenedLeases()
        self._spent = SpentLeases()
        # Jobs by client, those of batches apart: a client's batch keeps none of its others out.
        self._clients: dict[tuple[PeerId, bool], int] = {}
        self._jobs: Counter[Digest] = Counter()
        self._uploads: Shares[Ticket] = Shares(
            UPLOAD_BYTES_MAX, rank=lambda ticket: ticket.upload_due_at
        )

    @property
    def uploading(self) -> int:
        """Jobs whose payloads still arrive."""
        return len(self._uploads)

    def check_evidence(
        self, request: Signed[JobRequest], lease: Signed[Lease], *, now_ms: int
    ) -> None:
        """Spend the lease if it is in order. Raises RemoteProtocolError (see above)."""
        check_lease(
            lease,
            request,
            node=self.rules.node,
            coordinators=self.rules.coordinators,
            now_ms=now_ms,
        )
        granted = lease.message
        if not self._offers.has_made(granted.offer_digest, now_ms=now_ms):
            # Perhaps it was opened before a restart of ours, and a receipt of real work is there:
            # one of nothing would let its client have that for free.
            raise RemoteProtocolError(
                "the lease rests on an offer that this node does not make any more",
                code=Code.PRICE_MISMATCH,
            )
        if granted.open_before_ms - granted.issued_at_ms > LEASE_OPEN_WITHIN_MS:
            raise RemoteProtocolError(
                "the lease may be opened for longer than leases are remembered",
                code=Code.MALFORMED,
            )
        self._spent.spend(granted, now_ms=now_ms)
        self.opened.note(granted)

    def admit(
        self,
        request: Signed[JobRequest],
        lease: Signed[Lease],
        *,
        upload_bytes: int,
        now_ms: int,
    ) -> Ticket:
        """Let a job in; if nothing is to be uploaded beside what has come, it can take a seat at
        once. Raises RemoteProtocolError with the first reason against it."""
        asked, granted = request.message, lease.message
        self._check_node(asked)
        model = self._check_model(asked, granted, now_ms)
        if granted.deadline_at_ms + CLOCK_SKEW_MAX_MS <= now_ms:
            raise RemoteProtocolError(
                "the deadline has passed already", code=Code.DEADLINE_EXCEEDED
            )
        self._check_room(asked, model)
        self._check_memory(granted, model, now_ms)
        ticket = Ticket(granted.lease_id, asked.client, model, is_batch=asked.is_batch)
        if upload_bytes:
            self._begin_upload(ticket, granted, upload_bytes)
        place = (asked.client, asked.is_batch)
        self._clients[place] = self._clients.get(place, 0) + 1
        self._jobs[model.digest] += 1
        return ticket

    def has_jobs(self, model: Digest) -> bool:
        """Whether any job of it is here, one whose payload still arrives included."""
        return bool(self._jobs[model])

    def take_seat(self, ticket: Ticket) -> None:
        """The payload is whole. An upload holds no seat: a slow one would keep others out. Raises
        RemoteProtocolError (BUSY) if the seats were taken meanwhile."""
        self._end_upload(ticket)
        ticket.model.seats.take(ticket.lease_id, is_batch=ticket.is_batch)

    def release(self, ticket: Ticket, *, ran_ms: float | None) -> None:
        """Let the job go; the next one in the queue starts."""
        self._end_upload(ticket)
        place = (ticket.client, ticket.is_batch)
        self._clients[place] -= 1
        if not self._clients[place]:
            del self._clients[place]
        self._jobs[ticket.model.digest] -= 1
        ticket.model.seats.leave(ticket.lease_id, ran_ms=ran_ms)

    def _begin_upload(self, ticket: Ticket, lease: Lease, size: int) -> None:
        """Raises RemoteProtocolError (BUSY) if there is no room for so many bytes."""
        if self._uploads.size_of(ticket.client) + size > UPLOAD_BYTES_PER_CLIENT_MAX:
            raise RemoteProtocolError("this client uploads too much at once", code=Code.BUSY)
        evicted = self._uploads.make_room(ticket.client, size)
        if evicted is None:
            raise RemoteProtocolError("too much is being uploaded", code=Code.BUSY)
        self._uploads.add(ticket, ticket.client, size)
        self.opened.note_arriving(lease)
        for other in evicted:
            other.evict()

    def _end_upload(self, ticket: Ticket) -> None:
        """The payload counts against uploads no more; the worker's bounds hold from here."""
        self._uploads.remove(ticket)
        self.opened.note_arrived(ticket.lease_id)

    def _check_node(self, asked: JobRequest) -> None:
        """What would refuse any job, or any job of this kind."""
        if self.is_draining:
            raise RemoteProtocolError("this node is shutting down", code=Code.DRAINING)
        if self._is_paused():
            # Why is its owner's business.
            raise RemoteProtocolError("this node takes no jobs for now", code=Code.DRAINING)
        if self.rules.isolation is IsolationTier.NONE:
            raise RemoteProtocolError(
                "this node cannot confine other people's jobs", code=Code.ISOLATION_UNAVAILABLE
            )
        if self.rules.isolation.rank < asked.constraints.isolation.rank:
            raise RemoteProtocolError(
                f"the job asks for {asked.constraints.isolation.value} isolation, this node has "
                f"{self.rules.isolation.value}",
                code=Code.ISOLATION_UNAVAILABLE,
            )
        if (
            asked.constraints.data_collection is DataCollection.DENY
            and self.rules.data_collection is DataCollection.ALLOW
        ):
            raise RemoteProtocolError(
                "the job forbids keeping its data, this node may keep it",
                code=Code.MODEL_UNAVAILABLE,
            )
        failure = self._storage_failure()
        if failure:
            raise RemoteProtocolError(
                "this node has no room for another receipt", code=Code.STORAGE_FULL
            )

    def _check_model(self, asked: JobRequest, granted: Lease, now_ms: int) -> ServedModel:
        model = self._models.get(granted.model_digest)
        if model is None:
            raise RemoteProtocolError(
                f"this node does not have model {granted.model_digest[:12]}…",
                code=Code.UNKNOWN_MODEL,
            )
        price = self._offers.price_of(
            granted.offer_digest, model.digest, now_ms=now_ms, is_batch=asked.is_batch
        )
        if price is None:
            raise RemoteProtocolError(
                "the lease rests on an offer that this node does not make any more",
                code=Code.PRICE_MISMATCH,
            )
        # A client or a coordinator may not know of cached tokens: then they cost as others do.
        if granted.price not in (price, price.without_cached):
            raise RemoteProtocolError(
                "the lease's price is not the one that this node offered",
                code=Code.PRICE_MISMATCH,
            )
        if asked.task is not model.manifest.task:
            raise RemoteProtocolError(
                f"{model.name} does {model.manifest.task.value}, not {asked.task.value}",
                code=Code.INVALID_INPUT,
            )
        if not model.is_available:
            raise RemoteProtocolError(
                f"{model.name} is not running at the moment", code=Code.MODEL_UNAVAILABLE
            )
        return model

    def _check_room(self, asked: JobRequest, model: ServedModel) -> None:
        """Bounds across models, and whether the model has a seat as things are."""
        place = (asked.client, asked.is_batch)
        if self._clients.get(place, 0) >= self.rules.per_client_max:
            raise RemoteProtocolError(
                f"this node runs {self.rules.per_client_max} jobs of one client at a time",
                code=Code.BUSY,
                retry_after_ms=model.seats.retry_after_ms,
            )
        model.seats.check_room(is_batch=asked.is_batch)

    def _check_memory(self, granted: Lease, model: ServedModel, now_ms: int) -> None:
        """Of a cold model: whether it could be loaded now, and the client knows that it has to be.
        Raises RemoteProtocolError (BUSY)."""
        load_ms = model.load_ms
        if not load_ms:
            return
        if not model.has_room:
            raise RemoteProtocolError(
                f"{model.name} is not loaded, and the models that are have jobs",
                code=Code.BUSY,
                retry_after_ms=model.seats.retry_after_ms,
            )
        offered = self._offers.find(granted.offer_digest, model.digest, now_ms=now_ms)
        is_told = offered is not None and offered.load_ms > 0
        if not is_told and load_ms > LOAD_UNTOLD_MS_MAX:
            raise RemoteProtocolError(
                f"{model.name} was unloaded a moment ago, and loading it takes {load_ms} ms",
                code=Code.BUSY,
                retry_after_ms=load_ms,
            )
