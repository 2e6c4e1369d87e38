"""A pool of leases that were taken ahead of their jobs, for what is in demand now.

A job that fits a lease here opens it at once: no coordinator, no match and no hold are on its way.
What fits is decided in `classes`, how many are kept in `stock`. All leases of a payer together hold
a small share of its free money, and take only seats that are idle. A lease that is not used is
given back: it is opened with nothing and cancelled, or disowned where the coordinator is local.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import structlog
import trio

from coordinator.buyer.affinity import CACHED_CHARS_MIN, affinity_of
from coordinator.buyer.ahead.classes import LeaseClass, class_of
from coordinator.buyer.ahead.stock import LeaseAhead, LeaseStock
from coordinator.buyer.leaser import Leaser
from coordinator.buyer.opener import Opener
from coordinator.buyer.parts import LeasedPart, SignedPart
from coordinator.buyer.spec import JobSpec
from protocol.clock import Entropy
from protocol.codec import encode
from protocol.envelope import Signed, seal
from protocol.errors import RemoteProtocolError
from protocol.grants import Granted, check_terms
from protocol.ids import ULID_ENTROPY_BYTES, JobId, PeerId, new_ulid
from protocol.keys import SigningKey
from protocol.late_payloads import PayloadBinding
from protocol.limits import PAYLOAD_BYTES_MAX, SALT_BYTES
from protocol.messages import JobRequest
from protocol.net.errors import NetError
from protocol.payload import SaltedPayload

log = structlog.get_logger(__name__)

# Of one class. With the lease's half a minute this is demand of a few jobs a second and more.
LEASES_PER_CLASS = 8
# Classes that are watched; the one longest without a job goes first.
CLASSES_MAX = 64
# All leases ahead of one payer hold at most this part of what it has free.
MONEY_SHARE = 20
# A job that has just been opened goes out before new leases are asked for.
_TEND_AFTER_S = 0.005
_TEND_EVERY_S = 1.0
_LEASED_WITHIN_S = 10.0
# Beginnings of inputs whose nodes are remembered.
_BEGINNINGS_MAX = 10_000


@dataclass(slots=True)
class PoolCounts:
    """Leases that wait for a job (`ready`); jobs that found one (`hits`) or did not (`misses`), of
    those that could have; leases that were given back (`unused`)."""

    ready: int = 0
    hits: int = 0
    misses: int = 0
    unused: int = 0


class LeasePool:
    """`run` must be running. `leases_max` is per class; 0 keeps none."""

    def __init__(
        self,
        leaser: Leaser,
        opener: Opener,
        *,
        entropy: Entropy,
        leases_max: int = LEASES_PER_CLASS,
    ) -> None:
        self._counts = PoolCounts()
        self._leaser = leaser
        self._opener = opener
        self._entropy = entropy
        self._leases_max = leases_max
        self._stocks: OrderedDict[LeaseClass, tuple[LeaseStock, SigningKey]] = OrderedDict()
        self._nodes: OrderedDict[bytes, PeerId] = OrderedDict()
        self._changed = trio.Event()
        self._is_closed = leases_max == 0

    def counts(self) -> PoolCounts:
        """As they are now."""
        ready = sum(len(stock) for stock, _ in self._stocks.values())
        return replace(self._counts, ready=ready)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the stocks, until cancelled."""
        async with trio.open_nursery() as nursery:
            task_status.started()
            while True:
                with trio.move_on_after(_TEND_EVERY_S):
                    await self._changed.wait()
                await trio.sleep(_TEND_AFTER_S)
                self._changed = trio.Event()
                self._tend(nursery)

    def close(self) -> None:
        """Give all leases back, and take no more."""
        self._is_closed = True
        for stock, key in self._stocks.values():
            for lease in stock.leases:
                stock.remove(lease)
                self._give_back(lease, key)

    def take(self, spec: JobSpec, key: SigningKey) -> LeasedPart | None:
        """A lease for this job; its caller opens it. None if there is none that fits."""
        if self._is_closed or spec.job_id is not None:
            return None
        data = encode(spec.job_input)
        wanted = None
        if len(data) <= PAYLOAD_BYTES_MAX:
            wanted = class_of(spec, key.peer_id, payload_bytes=len(data))
        if wanted is None:
            return None
        now = trio.current_time()
        stock = self._stock(wanted, key)
        stock.note_arrival(now)
        if stock.missing(now):
            self._changed.set()
        affinity = affinity_of(spec.job_input, spec.session, key)
        is_short = len(data) < CACHED_CHARS_MIN and not spec.session
        node = None if is_short else self._node_of(affinity)
        lease = stock.find(now, lambda lease: _fits(lease, spec, node, now))
        if lease is None or not _may_have_id(spec, lease):
            self._counts.misses += 1
            return None
        stock.remove(lease)
        self._counts.hits += 1
        if stock.missing(now):
            self._changed.set()
        payload = SaltedPayload(data, self._entropy(SALT_BYTES))
        binding = PayloadBinding(payload.digest, len(data), spec.units_max, affinity)
        part = SignedPart(spec, lease.request, payload)
        return LeasedPart(part, lease.granted, binding)

    def note_opened(self, granted: Granted, spec: JobSpec, key: SigningKey) -> None:
        """Where a job runs, by whatever lease: an input that begins alike goes to that node."""
        if self._is_closed:
            return
        for beginning in affinity_of(spec.job_input, spec.session, key):
            self._nodes.pop(beginning, None)
            self._nodes[beginning] = granted.lease.message.node
        while len(self._nodes) > _BEGINNINGS_MAX:
            self._nodes.popitem(last=False)

    def _node_of(self, affinity: tuple[bytes, ...]) -> PeerId | None:
        """The node that should have the input's beginning in its cache."""
        return next((self._nodes[key] for key in affinity if key in self._nodes), None)

    def _stock(self, wanted: LeaseClass, key: SigningKey) -> LeaseStock:
        found = self._stocks.get(wanted)
        if found is None:
            found = self._stocks[wanted] = (LeaseStock(most=self._leases_max), key)
            if len(self._stocks) > CLASSES_MAX:
                self._drop_one()
        self._stocks.move_to_end(wanted)
        return found[0]

    def _drop_one(self) -> None:
        """The class longest without a job, of those that have no leases; else the bound on classes
        yields to what is on its way."""
        for wanted, (stock, _) in self._stocks.items():
            if stock.is_idle:
                del self._stocks[wanted]
                return

    def _tend(self, nursery: trio.Nursery) -> None:
        now = trio.current_time()
        for wanted, (stock, key) in list(self._stocks.items()):
            for lease in stock.take_unwanted(now):
                self._give_back(lease, key)
            count = 0 if self._is_closed else stock.missing(now)
            if count:
                stock.ask_for(count)
                nursery.start_soon(self._refill, wanted, stock, key, count)

    async def _refill(
        self, wanted: LeaseClass, stock: LeaseStock, key: SigningKey, count: int
    ) -> None:
        # A share each, so that their sum is within what is left.
        most_nano = await self._left_nano(wanted) // count

        async def add_one() -> None:
            lease = await self._lease(wanted, key, most_nano=most_nano)
            if lease is None:
                stock.note_refused(trio.current_time())
                return
            stock.add(lease)
            if self._is_closed:
                self.close()

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(add_one)

    async def _left_nano(self, wanted: LeaseClass) -> int:
        """What this payer's leases ahead may hold beside those that it has."""
        held_nano = sum(
            lease.granted.lease.message.ceiling_nano
            for other, (stock, _) in self._stocks.items()
            if (other.client, other.payer) == (wanted.client, wanted.payer)
            for lease in stock.leases
        )
        try:
            free_nano = await self._leaser.free_nano(wanted.client, wanted.payer)
        except (RemoteProtocolError, NetError):
            return 0
        return max((free_nano + held_nano) // MONEY_SHARE - held_nano, 0)

    async def _lease(
        self, wanted: LeaseClass, key: SigningKey, *, most_nano: int
    ) -> LeaseAhead | None:
        request = self._sign(wanted, key, most_nano)
        asked_at = trio.current_time()
        try:
            with trio.fail_after(_LEASED_WITHIN_S):
                granted = await self._leaser.lease(request, payer=wanted.payer)
            check_terms(granted, request)
        except (RemoteProtocolError, NetError, trio.TooSlowError) as error:
            log.debug("no_lease_ahead", model=wanted.model, error=str(error))
            return None
        return LeaseAhead.taken(request, granted, asked_at=asked_at)

    def _sign(self, wanted: LeaseClass, key: SigningKey, most_nano: int) -> Signed[JobRequest]:
        now_ms = self._opener.clock.now_ms()
        request = JobRequest(
            job_id=JobId(new_ulid(now_ms, self._entropy(ULID_ENTROPY_BYTES))),
            client=wanted.client,
            coordinator=self._leaser.coordinator,
            model=wanted.model,
            task=wanted.task,
            payload_digest=None,
            payload_bytes=wanted.payload_bytes,
            units_max=wanted.units_max,
            units_expected=wanted.units_expected,
            objective=wanted.objective,
            constraints=replace(wanted.constraints, max_cost_nano=most_nano),
            issued_at_ms=now_ms,
            deadline_at_ms=now_ms + wanted.duration_ms,
            counts_cached=True,
        )
        return seal(key, request)

    def _give_back(self, lease: LeaseAhead, key: SigningKey) -> None:
        self._counts.unused += 1
        self._opener.give_back_ahead(lease.request, lease.granted, key)


def _fits(lease: LeaseAhead, spec: JobSpec, node: PeerId | None, now: float) -> bool:
    """Whether a job may have this lease, which has to be at `node` if one is named."""
    granted, most_nano = lease.granted.lease.message, spec.constraints.max_cost_nano
    if lease.deadline_at - now < spec.deadline_s:
        return False
    if most_nano is not None and granted.ceiling_nano > most_nano:
        return False
    return node in (None, granted.node)


def _may_have_id(spec: JobSpec, lease: LeaseAhead) -> bool:
    """Whether the job may have the id that the lease brings: its buyer may have told another."""
    return spec.name is None or spec.name.adopt(lease.request.message.job_id)


def sum_counts(counts: Iterable[PoolCounts]) -> PoolCounts:
    """Of several pools."""
    total = PoolCounts()
    for each in counts:
        total.ready += each.ready
        total.hits += each.hits
        total.misses += each.misses
        total.unused += each.unused
    return total
