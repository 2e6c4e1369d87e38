"""From a signed request to a signed lease: check, choose, hold the money, sign.

The hold is durable before the lease leaves this process: a node that is shown a lease can rely on
the money being there. Everything between the request and the commit is synchronous, so that a job
is counted against its node before the next one is matched.
"""

from contextlib import suppress
from functools import partial

import structlog
import trio

from coordinator.db.accounts import find_account
from coordinator.db.api_keys import find_key_funds
from coordinator.db.engine import Database
from coordinator.db.jobs import record_job
from coordinator.db.leases import LeaseTerms, list_leases_of, record_lease
from coordinator.db.writer import LedgerWriter
from coordinator.errors import CoordinatorError
from coordinator.leasing.funds import Funds
from coordinator.leasing.held_money import HeldMoney
from coordinator.leasing.open_lease import Opening, OpenLease
from coordinator.leasing.openings import TooManyUnopenedError
from coordinator.leasing.receipts import ReceiptTaker
from coordinator.leasing.registry import LeaseRegistry
from coordinator.ledger.accounts import account_of
from coordinator.ledger.postings import hold, lease_id_of
from coordinator.ledger.refusals import IdTakenError
from coordinator.ledger.transfers import Result
from coordinator.market.market import Market
from coordinator.market.matching import HERE, Candidate, Vantage
from protocol.blame import Observation
from protocol.clock import Clock
from protocol.countersigning import Delivery
from protocol.envelope import Signed, open_envelope, seal
from protocol.errors import Code, RemoteProtocolError
from protocol.grants import NO_ATTEMPTS, EarlierAttempts, Granted, Payer
from protocol.ids import JobId, PeerId
from protocol.keys import SigningKey
from protocol.limits import LEASE_OPEN_WITHIN_MS
from protocol.messages import Acceptance, JobRequest, Lease, Receipt
from protocol.receipts import check_request
from protocol.services import NodesAsk, NodesReply, QuoteAsk, QuoteReply, SettleReply

log = structlog.get_logger(__name__)

# Money bounds a client's holds, unless nodes give their work away: each open lease is a few
# kilobytes of ours, for up to eleven minutes. Twice what the largest gateway has in flight.
LEASES_PER_CLIENT_MAX = 10_000
LEASES_FULL_RETRY_MS = 5_000
# A user would rather wait than be sent away; a client that waits longer has given up.
TURN_WITHIN_S = 30.0
# A remote client waits ten seconds for an answer (`buyer.remote`).
REMOTE_TURN_WITHIN_S = 8.0


class LeaseService:
    """The coordinator as a client sees it, in the same process: a `Leaser`."""

    def __init__(
        self,
        key: SigningKey,
        market: Market,
        leases: LeaseRegistry,
        receipts: ReceiptTaker,
        writer: LedgerWriter,
        *,
        database: Database,
        clock: Clock,
        open_within_ms: int = LEASE_OPEN_WITHIN_MS,
    ) -> None:
        self._key = key
        self._market = market
        self._leases = leases
        self._receipts = receipts
        self._writer = writer
        self._database = database
        self._funds = Funds(database)
        self._held_money = HeldMoney(market, leases, database, clock)
        self._clock = clock
        self._open_within_ms = open_within_ms

    @property
    def coordinator(self) -> PeerId:
        return self._key.peer_id

    @property
    def is_local(self) -> bool:
        """The hold is the last wait of a lease, and is not made for a caller that is cancelled."""
        return True

    async def lease(
        self,
        request: Signed[JobRequest],
        *,
        earlier: EarlierAttempts = NO_ATTEMPTS,
        payer: Payer | None = None,
        wait_s: float = TURN_WITHIN_S,
        vantage: Vantage = HERE,
    ) -> Granted:
        """See `Leaser.lease`. The caller vouches that the request comes from its client. If all
        fitting nodes are busy, it waits for its turn up to `wait_s` and to the job's deadline; a
        lease ahead of its job waits for nothing.
        `vantage` says where its client stands."""
        now_ms = self._clock.now_ms()
        check_request(request, coordinator=self.coordinator, now_ms=now_ms)
        for receipt in earlier.receipts:
            await self._receipts.accept(receipt, None)
        for delivery in earlier.deliveries:
            # Of a lease that has ended meanwhile there is nothing to bound.
            with suppress(RemoteProtocolError):
                await self._receipts.declare(delivery)
        asked = request.message
        # Before anything else is asked of the market: no money, no side effects.
        await self._funds.check(asked.client)
        deadline_at_ms = self._leases.jobs.deadline_at_ms(request, now_ms=now_ms)
        within_s = min(wait_s, max(deadline_at_ms - now_ms, 0) / 1_000)
        if asked.is_ahead:
            within_s = 0.0
        gives_up_at = trio.current_time() + within_s
        while True:
            try:
                return await self._leases.turns.take(
                    asked.model,
                    asked.client,
                    partial(
                        self._grant_or_recall,
                        request,
                        frozenset(earlier.nodes),
                        payer,
                        vantage=vantage,
                    ),
                    within_s=max(gives_up_at - trio.current_time(), 0.0),
                    is_choosy=bool(asked.constraints.only or asked.constraints.order),
                    is_batch=asked.is_batch,
                    is_resumed=asked.part > 0,
                )
            except TooManyUnopenedError:
                if not await self._leases.openings.wait_room(asked.client, until=gives_up_at):
                    raise
            except RemoteProtocolError as error:
                raise await self._held_money.explain(error, request, payer) from error

    async def _grant_or_recall(
        self,
        request: Signed[JobRequest],
        exclude: frozenset[PeerId],
        payer: Payer | None,
        *,
        vantage: Vantage,
    ) -> Granted:
        budget_nano = None
        try:
            return await self._grant(request, exclude, payer, vantage=vantage)
        except _LeasedBeforeError:
            await self._recall(request.message.client, request.message.job_id)
        except RemoteProtocolError as error:
            if error.code is Code.NO_NODE_FITS and not request.message.needs_idle_seat:
                if not self._leases.yield_ahead():
                    raise
            elif payer is None or error.code is not Code.BUDGET_EXCEEDED:
                raise
            else:
                # A cheaper node may do.
                budget_nano = await self._left_nano(payer)
        return await self._grant(request, exclude, payer, vantage=vantage, budget_nano=budget_nano)

    async def _grant(
        self,
        request: Signed[JobRequest],
        exclude: frozenset[PeerId],
        payer: Payer | None,
        *,
        vantage: Vantage,
        budget_nano: int | None = None,
    ) -> Granted:
        now_ms = self._clock.now_ms()
        attempt = self._leases.jobs.next_attempt(request)
        if self._leases.count_of(request.message.client) >= LEASES_PER_CLIENT_MAX:
            raise RemoteProtocolError(
                f"this client has {LEASES_PER_CLIENT_MAX} leases open: settle some first",
                code=Code.RATE_LIMITED,
                retry_after_ms=LEASES_FULL_RETRY_MS,
            )
        if request.message.is_ahead:
            self._leases.openings.check_room_ahead(request.message.client)
        elif payer is None:
            self._leases.openings.check_room(request.message.client)
        deadline_at_ms = self._leases.jobs.deadline_at_ms(request, now_ms=now_ms)
        choice = self._market.choose(
            request.message,
            exclude=exclude,
            deadline_at_ms=deadline_at_ms,
            budget_nano=budget_nano,
            vantage=vantage,
        )
        candidate = choice.candidate
        self._funds.check_ceiling(request.message.client, candidate.ceiling_nano)
        terms = self._terms(request, candidate, attempt, now_ms, deadline_at_ms)
        lease = seal(self._key, terms)
        opened = _open_lease(lease, candidate, payer)
        opened.is_batch = request.message.is_batch
        opened.is_ahead = request.message.is_ahead
        await self._hold(request, opened)
        log.info(
            "lease_granted",
            job_id=lease.message.job_id,
            lease_id=lease.message.lease_id,
            node=lease.message.node,
            ceiling_nano=lease.message.ceiling_nano,
            why=candidate.why.value,
        )
        return Granted(
            lease,
            candidate.offer,
            choice.match_us,
            first_output_within_ms=choice.first_output_within_ms,
            gap_within_ms=choice.gap_within_ms,
            hedge_after_ms=choice.hedge_after_ms,
        )

    async def settle(self, receipt: Signed[Receipt], acceptance: Signed[Acceptance]) -> SettleReply:
        return await self._receipts.accept(receipt, acceptance)

    async def declare(self, delivery: Signed[Delivery]) -> None:
        await self._receipts.declare(delivery)

    def observe(self, lease: Signed[Lease], observation: Observation) -> None:
        self._leases.observe(lease.message.lease_id, observation)

    async def free_nano(self, client: PeerId, payer: Payer | None) -> int:
        account = await self._database.read(find_account, account_of(client))
        free = account.available_nano if account is not None else 0
        left = await self._left_nano(payer) if payer is not None else None
        return free if left is None else min(free, left)

    async def quote(self, ask: QuoteAsk) -> QuoteReply:
        return self._market.quote(ask)

    async def nodes(self, ask: NodesAsk) -> NodesReply:
        return self._market.nodes(ask)

    async def _left_nano(self, payer: Payer) -> int | None:
        """What the payer's budget leaves for one more lease; None is no limit."""
        keys = await self._database.read(find_key_funds, {payer.api_key_id})
        funds = keys.get(payer.api_key_id)
        return None if funds is None or funds.left_nano is None else max(0, funds.left_nano)

    def _terms(
        self,
        request: Signed[JobRequest],
        candidate: Candidate,
        attempt: int,
        now_ms: int,
        deadline_at_ms: int,
    ) -> Lease:
        asked = request.message
        record = self._leases.clients.look_up(asked.client)
        return Lease(
            lease_id=lease_id_of(asked.client, asked.job_id, attempt),
            request_digest=request.digest,
            job_id=asked.job_id,
            attempt=attempt,
            client=asked.client,
            node=candidate.node,
            coordinator=self.coordinator,
            offer_digest=candidate.offer.digest,
            model_digest=candidate.model.manifest_digest,
            price=candidate.price if asked.counts_cached else candidate.price.without_cached,
            units_max=asked.units_max,
            ceiling_nano=candidate.ceiling_nano,
            issued_at_ms=now_ms,
            open_before_ms=min(now_ms + self._open_within_ms, deadline_at_ms),
            deadline_at_ms=deadline_at_ms,
            window_tokens=self._leases.clients.windows.of(record),
            client_standing=record.standing,
            pays_tails=not self._leases.tails.is_suspect(candidate.node),
            incarnation_ms=candidate.offer.message.incarnation_ms,
        )

    async def _hold(self, request: Signed[JobRequest], opened: OpenLease) -> None:
        """Make the hold durable. Raises RemoteProtocolError (OUT_OF_FUNDS, …); nothing is kept."""
        lease, granted = opened.lease, opened.lease.message
        expires_at_ms = opened.hold_expires_at_ms
        self._leases.reserve(opened, part=request.message.part)
        rows = (
            record_job(
                request,
                model_digest=granted.model_digest,
                attempt=granted.attempt,
                now_ms=granted.issued_at_ms,
            ),
            record_lease(
                lease,
                LeaseTerms(
                    opened.funds.hold_id,
                    expires_at_ms,
                    opened.api_key_id,
                    node_incarnation_ms=granted.incarnation_ms,
                    window_tokens=granted.window_tokens,
                ),
            ),
        )
        posted = None
        try:
            posted = await self._writer.submit(
                hold(opened.funds, timeout_at_ms=expires_at_ms, api_key_id=opened.api_key_id),
                rows,
            )
        except IdTakenError as error:
            raise _leased_before() from error
        except CoordinatorError as error:
            raise RemoteProtocolError(str(error), code=error.code) from error
        finally:
            if posted is not Result.CREATED:
                self._leases.cancel(opened)
                self._funds.forget(granted.client)
        if posted is not Result.CREATED:
            raise _leased_before()
        self._leases.confirm(opened)
        self._market.note_affinity(granted.client, request.message.affinity, granted.node)
        self._funds.note_hold(granted.client)

    async def _recall(self, client: PeerId, job_id: JobId) -> None:
        """Learn from the books what an earlier process knew of a job: its client cannot know that
        we were restarted between its attempts."""
        stored = await self._database.read(list_leases_of, client, job_id)
        if stored:
            self._leases.jobs.note(open_envelope(stored[-1].envelope, Lease).message)


def _open_lease(lease: Signed[Lease], candidate: Candidate, payer: Payer | None) -> OpenLease:
    """With a payer our own gateway asks, which opens what it leases."""
    if payer is None:
        return OpenLease(lease, None, candidate.claim)
    return OpenLease(lease, payer.api_key_id, candidate.claim, Opening.UNKNOWN)


class _LeasedBeforeError(RemoteProtocolError):
    """The lease's id is taken: this process has not seen the job's earlier leases, or has forgotten
    them."""


def _leased_before() -> _LeasedBeforeError:
    return _LeasedBeforeError(
        "a job with this id was leased before: choose a new one", code=Code.REPLAYED
    )
