"""A coordinator on another machine, as a `Leaser`: for the command line and for
gateways that run next to their users."""

from collections.abc import Callable
from typing import TypeVar

from protocol.blame import Observation
from protocol.countersigning import Delivery
from protocol.envelope import Signed, open_envelope
from protocol.grants import NO_ATTEMPTS, EarlierAttempts, Granted, Payer
from protocol.ids import PeerId
from protocol.messages import Acceptance, JobRequest, Lease, Receipt
from protocol.net.pool import StreamPool
from protocol.net.rpc import RpcClient
from protocol.offers import NodeOffer
from protocol.services import (
    BalanceAsk,
    BalanceReply,
    DeliveryAck,
    DeliveryAsk,
    EvidenceAsk,
    EvidenceReply,
    JobAsk,
    JobReply,
    JobsAsk,
    JobsReply,
    LeaseAsk,
    LeaseGrant,
    Method,
    NodesAsk,
    NodesReply,
    QuoteAsk,
    QuoteReply,
    RoundTrip,
    SettleAsk,
    SettleReply,
    UsageAsk,
    UsageReply,
)

R = TypeVar("R")

# A lease is a decision and one durable write; the coordinator answers within milliseconds or is
# in trouble.
ANSWER_WITHIN_S = 10.0


class RemoteLeaser:
    """Asks `coordinator` at `addresses` over LEASE_PROTOCOL. Its answers are verified here.
    `round_trips` says how far away nodes are from this client, where it measures that."""

    def __init__(
        self,
        pool: StreamPool,
        coordinator: PeerId,
        *,
        addresses: tuple[str, ...],
        round_trips: Callable[[], tuple[RoundTrip, ...]] = tuple,
    ) -> None:
        self._rpc = RpcClient(pool)
        self._coordinator = coordinator
        self._addresses = addresses
        self._round_trips = round_trips

    @property
    def coordinator(self) -> PeerId:
        return self._coordinator

    @property
    def is_local(self) -> bool:
        return False

    async def lease(
        self,
        request: Signed[JobRequest],
        *,
        earlier: EarlierAttempts = NO_ATTEMPTS,
        payer: Payer | None = None,
    ) -> Granted:
        ask = LeaseAsk(
            request.raw,
            earlier.nodes,
            tuple(receipt.raw for receipt in earlier.receipts),
            tuple(delivery.raw for delivery in earlier.deliveries),
            self._round_trips(),
        )
        grant = await self._call(Method.LEASE, ask, LeaseGrant)
        return Granted(
            lease=open_envelope(grant.lease, Lease, signer=self._coordinator),
            offer=open_envelope(grant.offer, NodeOffer),
            match_us=grant.match_us,
            first_output_within_ms=grant.first_output_within_ms,
            gap_within_ms=grant.gap_within_ms,
            hedge_after_ms=grant.hedge_after_ms,
        )

    async def settle(self, receipt: Signed[Receipt], acceptance: Signed[Acceptance]) -> SettleReply:
        return await self._call(Method.SETTLE, SettleAsk(receipt.raw, acceptance.raw), SettleReply)

    async def declare(self, delivery: Signed[Delivery]) -> None:
        await self._call(Method.DELIVERY, DeliveryAsk(delivery.raw), DeliveryAck)

    def observe(self, lease: Signed[Lease], observation: Observation) -> None:
        """A coordinator believes strangers only what they sign: a receipt's acceptance, or a
        delivery."""

    async def free_nano(self, client: PeerId, payer: Payer | None) -> int:
        return (await self.balance()).available_nano

    async def quote(self, ask: QuoteAsk) -> QuoteReply:
        return await self._call(Method.QUOTE, ask, QuoteReply)

    async def nodes(self, ask: NodesAsk) -> NodesReply:
        return await self._call(Method.NODES, ask, NodesReply)

    async def balance(self) -> BalanceReply:
        return await self._call(Method.BALANCE, BalanceAsk(), BalanceReply)

    async def jobs(self, ask: JobsAsk) -> JobsReply:
        return await self._call(Method.JOBS, ask, JobsReply)

    async def job(self, ask: JobAsk) -> JobReply:
        return await self._call(Method.JOB, ask, JobReply)

    async def evidence(self, ask: EvidenceAsk) -> EvidenceReply:
        return await self._call(Method.EVIDENCE, ask, EvidenceReply)

    async def usage(self, ask: UsageAsk) -> UsageReply:
        return await self._call(Method.USAGE, ask, UsageReply)

    async def _call(self, method: Method, ask: object, reply: type[R]) -> R:
        return await self._rpc.call(
            self._coordinator,
            method,
            ask,
            reply,
            timeout_s=ANSWER_WITHIN_S,
            addresses=self._addresses,
        )
