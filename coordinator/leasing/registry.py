"""The one owner of every lease's life: reserve, confirm, bound, end, restore.

A lease takes a seat at its node and counts against its client, and its outcome goes into the
records of both. This registry alone tells them, so that what a lease took is given back exactly
once, however the lease ends. It does no I/O: `granting` writes the holds, `settling` the payments,
and the database has the leases too.

Nothing lasts before the hold is durable: `reserve` takes what `cancel` gives back exactly. What
becomes of leases that are never opened is in `openings`.
"""

from collections import Counter, OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import structlog

from coordinator.leasing.clients import STRANGER, Clients
from coordinator.leasing.leased_jobs import JobKey, LeasedJobs
from coordinator.leasing.open_lease import Opening, OpenLease
from coordinator.leasing.openings import Openings
from coordinator.leasing.tails import Tails
from coordinator.leasing.turns import Turns
from coordinator.market.market import Market
from protocol.blame import Blame, Observation, blame_for
from protocol.countersigning import Delivery
from protocol.errors import Code, RemoteProtocolError
from protocol.ids import LeaseId, PeerId, TransferId
from protocol.pricing import Units

log = structlog.get_logger(__name__)

# Leases that were paid whole without a word of their clients, who may have been cut off and still
# hand it in; a client tries for a minute or two. About 300 bytes each.
LONE_MAX = 10_000


@dataclass(frozen=True, slots=True)
class Settlement:
    """How a lease ended with a receipt: what that charged, what was paid, whether the client has
    signed for what it got, and whether it agreed with its node."""

    billed_nano: int
    paid_nano: int
    is_signed: bool
    is_agreed: bool


class LeaseRegistry:
    """All open leases by id, and what they have taken of the market and of clients."""

    def __init__(self, market: Market, clients: Clients | None = None) -> None:
        self.jobs = LeasedJobs()
        self.turns = Turns()
        self.clients = clients if clients is not None else Clients()
        self.tails = Tails()
        self.openings = Openings(self.clients)
        self._market = market
        self._by_id: dict[LeaseId, OpenLease] = {}
        self._by_node: dict[PeerId, dict[LeaseId, OpenLease]] = {}
        self._last_of_job: dict[JobKey, OpenLease] = {}
        self._counts: Counter[PeerId] = Counter()
        self._lone: OrderedDict[LeaseId, tuple[PeerId, PeerId, int]] = OrderedDict()

    # Reading.

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[OpenLease]:
        return iter(self._by_id.values())

    def get(self, lease_id: LeaseId) -> OpenLease | None:
        return self._by_id.get(lease_id)

    def count_of(self, client: PeerId) -> int:
        """How many leases this client has open."""
        return self._counts[client]

    def holding(self, client: PeerId, api_key_id: str | None) -> list[OpenLease]:
        """The leases that hold this client's money, of one API key if it is named."""
        if not self._counts[client]:
            return []
        return [
            opened
            for opened in self._by_id.values()
            if opened.lease.message.client == client
            and (api_key_id is None or opened.api_key_id == api_key_id)
        ]

    def runs_at(self, node: PeerId) -> bool:
        """Whether a lease of this node was opened there, and has not ended."""
        leases = self._by_node.get(node, {}).values()
        return any(opened.opening is Opening.REPORTED for opened in leases)

    def by_hold(self) -> dict[TransferId, OpenLease]:
        return {opened.funds.hold_id: opened for opened in self._by_id.values()}

    # Beginnings.

    def reserve(self, opened: OpenLease, *, part: int) -> None:
        """Count a lease against its node and its client, although its hold is not durable yet: a
        burst would otherwise all be matched to the same node. `confirm` or `cancel` follows.
        Raises RemoteProtocolError (ALREADY_EXISTS) if a lease with this id is open."""
        earlier = self._last_of_job.get(_job_of(opened))
        self._add(opened, part=part)
        if earlier is not None and self.openings.abandon(earlier):
            # Its client could not reach that node, and goes on elsewhere.
            self._leave_seat(earlier)
        opened.probe = self._market.reserve(
            opened.lease.message,
            expires_at_ms=opened.hold_expires_at_ms,
            is_batch=opened.is_batch,
        )

    def confirm(self, opened: OpenLease) -> None:
        """The hold is durable."""
        self.clients.keep(opened.lease.message.client)

    def cancel(self, opened: OpenLease) -> None:
        """No hold was made: give back what `reserve` took, and nothing else."""
        if self._remove(opened):
            self._market.cancel(opened.lease.message, opened.probe)
            self.turns.wake()

    def restore(self, leases: Iterable[OpenLease], *, now_ms: int) -> None:
        """Take up what an earlier process left open, in order of attempts. Nodes could not hand
        their receipts in while it was away: they get the time that they have after a deadline."""
        restored = list(leases)
        for opened in restored:
            opened.restored_at_ms = now_ms
            opened.opening = Opening.UNKNOWN
            self._add(opened, part=None)
            if not opened.is_over:
                # Its seat is taken, although no node has offered us any yet.
                granted = opened.lease.message
                self._market.book.grant(
                    granted.lease_id,
                    granted.node,
                    granted.model_digest,
                    expires_at_ms=opened.hold_expires_at_ms,
                )
        if restored:
            log.info("leases_restored", count=len(restored))

    def remember(self, node: PeerId, client: PeerId, ending: Settlement) -> None:
        """A lease with a receipt that an earlier process saw end. Call it in order of time."""
        self.clients.keep(client).note_opened(is_opened=True)
        if ending.billed_nano:
            self._compare(node, client, ending)

    # What happens while it is open.

    def note_attached(self, node: PeerId, incarnation_ms: int) -> None:
        """A node is here: the leases of its earlier processes run no more, and free their seats.
        Their receipts may still come, from the node's outbox. Of its own leases our gateway sees
        for itself when they end: a node that only says that it restarted gets no more of them."""
        for opened in self._by_node.get(node, {}).values():
            is_older = opened.lease.message.incarnation_ms < incarnation_ms
            if is_older and not opened.is_watched_by_us:
                self._leave_seat(opened)

    def note_report(
        self, node: PeerId, *, opened: Iterable[LeaseId], arriving: Iterable[LeaseId]
    ) -> None:
        """A node reports that these leases of it were opened, and of which of those that are open
        the payloads still arrive."""
        at_node = self._by_node.get(node, {})
        for lease_id in opened:
            if lease_id in at_node:
                self.openings.note_opened(at_node[lease_id])
        still = frozenset(arriving)
        for lease_id, lease in at_node.items():
            lease.is_arriving = lease_id in still

    def yield_seats(self, now_ms: int) -> None:
        """Free the seats of leases whose jobs cannot run yet, if others wait for a seat. Their
        nodes queue them if they come all the same."""
        if self.turns.is_anyone_waiting:
            for opened in self.openings.idle(self._by_id.values(), now_ms):
                self._leave_seat(opened)

    def yield_ahead(self) -> bool:
        """Free the seats of leases that wait for a job: one is here that has none. Returns whether
        there were any."""
        found = self.openings.take_ahead()
        for granted in (opened.lease.message for opened in found):
            self._market.book.release(granted.lease_id)
        return bool(found)

    def note_beginning(self, opened: OpenLease, affinity: tuple[bytes, ...]) -> None:
        """How the input of a lease began that was taken ahead of it, as its client signed."""
        granted = opened.lease.message
        self._market.note_affinity(granted.client, affinity, granted.node)

    def note_receipt(self, opened: OpenLease) -> None:
        """A receipt is durable that is not paid yet: its job runs no more."""
        opened.has_receipt = True
        self._leave_seat(opened)

    def give_up_unopened(self, now_ms: int) -> list[OpenLease]:
        """Free the seats of leases that can be opened no more and were not. Returns those whose
        node is here and did not report them: their holds can be released, too."""
        releasable = []
        for opened in self.openings.overdue(self._by_id.values(), now_ms):
            self.openings.note_unopened(opened)
            self._leave_seat(opened)
            entry = self._market.book.get(opened.lease.message.node)
            if entry is not None and entry.is_attached:
                releasable.append(opened)
        return releasable

    def observe(self, lease_id: LeaseId, observation: Observation) -> None:
        """Our own client says how its job went: the seat is free."""
        opened = self._by_id.get(lease_id)
        if opened is None:
            return
        if observation.was_opened:
            self.openings.note_opened(opened)
        else:
            self.openings.note_never_opened(opened)
            self._note_unreached(opened, observation.code)
        self._judge(opened, observation)
        self._leave_seat(opened)

    def bound(self, opened: OpenLease, delivery: Delivery) -> None:
        """Its client has signed what it got of a job that ended without a receipt: no more than
        that will be charged. The first word stands. It frees no seat that a node has reported as
        opened: a client that lied would have its node given more jobs than it can run."""
        if opened.delivered is not None:
            return
        opened.delivered = delivery.units
        granted = opened.lease.message
        if delivery.units == Units() and self.openings.forgo(opened):
            self._leave_seat(opened)
            self._note_unreached(opened, delivery.code)
        observation = _observation(delivery)
        # What clients that have paid for nothing say of nodes costs them nothing.
        if observation is not None and self.clients.look_up(granted.client).standing > STRANGER:
            self._judge(opened, observation)

    def _note_unreached(self, opened: OpenLease, code: Code | None) -> None:
        if code is Code.NODE_LOST:
            granted = opened.lease.message
            self._market.note_unreached(granted.node, granted.client)

    # Ends.

    def settle(
        self, opened: OpenLease, ending: Settlement, *, observation: Observation | None
    ) -> bool:
        """A lease ends with a receipt. Returns False if it had ended before: then nothing
        changes."""
        self.openings.note_opened(opened)
        if not self.end(opened):
            return False
        # What our own end has cut, no client was there to sign for.
        if ending.billed_nano and (ending.is_signed or not opened.was_cut_by_us):
            self._compare(opened.lease.message.node, opened.lease.message.client, ending)
            self._keep_lone(opened, ending)
        if observation is not None:
            self._judge(opened, observation)
        return True

    def note_late_word(self, lease_id: LeaseId) -> None:
        """The client agrees with a receipt that was paid without its word. Only where that was all
        that the node billed: a client must not make good by a late word what it has gained by its
        silence. The word is not stored: it counts until a restart."""
        lone = self._lone.pop(lease_id, None)
        if lone is None:
            return
        node, client, paid_nano = lone
        self.tails.note(node, client, is_agreed=True)
        record = self.clients.keep(client)
        record.note_signed_late(paid_nano)
        record.is_suspect = self.tails.is_suspect(client)

    def expire(self, opened: OpenLease) -> None:
        """A lease's hold is given back because no receipt came. If its node had reported it as
        opened, the node broke its word; else the client never came."""
        was_opened = opened.opening is Opening.REPORTED
        if self.end(opened) and was_opened:
            self._judge(opened, _LOST)

    def end(self, opened: OpenLease) -> bool:
        """Forget a lease, and free what it took. Returns False if it had ended before."""
        if not self._remove(opened):
            return False
        self._leave_seat(opened)
        return True

    # Below: what the above share.

    def _add(self, opened: OpenLease, *, part: int | None) -> None:
        granted = opened.lease.message
        if granted.lease_id in self._by_id:
            raise RemoteProtocolError(
                "a lease with this id is open: choose a new job id", code=Code.ALREADY_EXISTS
            )
        self._by_id[granted.lease_id] = opened
        self._by_node.setdefault(granted.node, {})[granted.lease_id] = opened
        self._last_of_job[_job_of(opened)] = opened
        self._counts[granted.client] += 1
        self.jobs.begin(granted, part=part)
        self.openings.begin(opened)

    def _remove(self, opened: OpenLease) -> bool:
        granted = opened.lease.message
        if self._by_id.get(granted.lease_id) is not opened:
            return False
        del self._by_id[granted.lease_id]
        if self._last_of_job.get(_job_of(opened)) is opened:
            del self._last_of_job[_job_of(opened)]
        at_node = self._by_node[granted.node]
        del at_node[granted.lease_id]
        if not at_node:
            del self._by_node[granted.node]
        self._counts[granted.client] -= 1
        if not self._counts[granted.client]:
            del self._counts[granted.client]
        self.jobs.end(granted)
        self.openings.end(opened)
        return True

    def _leave_seat(self, opened: OpenLease) -> None:
        if self._market.book.release(opened.lease.message.lease_id):
            self.turns.wake()

    def _compare(self, node: PeerId, client: PeerId, ending: Settlement) -> None:
        """Take into both parties' records how they ended a lease."""
        if ending.paid_nano or not ending.is_agreed:
            self.tails.note(node, client, is_agreed=ending.is_agreed)
        record = self.clients.keep(client)
        record.is_suspect = self.tails.is_suspect(client)
        # The silence of a client says nothing where its node is the one to doubt.
        if ending.paid_nano and (ending.is_signed or not self.tails.is_suspect(node)):
            record.note_settled(ending.paid_nano, is_signed=ending.is_signed)

    def _keep_lone(self, opened: OpenLease, ending: Settlement) -> None:
        if ending.is_signed or ending.paid_nano != ending.billed_nano:
            return
        granted = opened.lease.message
        self._lone[granted.lease_id] = (granted.node, granted.client, ending.paid_nano)
        if len(self._lone) > LONE_MAX:
            self._lone.popitem(last=False)

    def _judge(self, opened: OpenLease, observation: Observation) -> None:
        """Take the job's outcome into its node's reputation, once."""
        if opened.is_batch and observation.blame is Blame.REFUSAL:
            return  # a node that makes room for live jobs must not rest for it
        if not opened.is_judged:
            opened.is_judged = True
            self._market.judge(opened.lease.message, opened.claim, observation)


def _job_of(opened: OpenLease) -> JobKey:
    return opened.lease.message.client, opened.lease.message.job_id


def _observation(delivery: Delivery) -> Observation | None:
    """What a client elsewhere says of a node, if it says that the node failed or refused. Its times
    are its own word: not used."""
    blame = blame_for(delivery.code)
    if blame not in (Blame.FAILURE, Blame.REFUSAL):
        return None
    return replace(_LOST, code=delivery.code, blame=blame, delivered=delivery.units)


# What a hold that runs out says of a node that had taken the job.
_LOST = Observation(
    code=Code.NODE_LOST,
    blame=Blame.FAILURE,
    first_output_ms=None,
    total_ms=0.0,
    delivered=Units(),
    has_receipt=False,
    is_first_hand=False,
)
