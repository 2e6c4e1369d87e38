"""What clients elsewhere ask of this coordinator: LEASE_PROTOCOL over the network.

The connection proves who asks; a lease is granted only to the signer of its request, so that a
stolen request is of no use. How often anyone may ask is bounded, whatever the question.
"""

import trio

from coordinator.leasing.granting import REMOTE_TURN_WITHIN_S, LeaseService
from coordinator.leasing.own_records import OwnRecords
from coordinator.market.matching import Vantage
from protocol.countersigning import Delivery
from protocol.envelope import open_envelope
from protocol.errors import Code, RemoteProtocolError
from protocol.grants import EarlierAttempts
from protocol.ids import PeerId
from protocol.messages import Acceptance, JobRequest, Receipt
from protocol.net.link import ASKING_LIMITS, serve_channels
from protocol.net.rpc import RpcServer
from protocol.net.transport import Stream
from protocol.services import (
    BalanceAsk,
    DeliveryAck,
    DeliveryAsk,
    EvidenceAsk,
    JobAsk,
    JobsAsk,
    LeaseAsk,
    LeaseGrant,
    Method,
    NodesAsk,
    NodesReply,
    QuoteAsk,
    QuoteReply,
    SettleAsk,
    SettleReply,
    UsageAsk,
)
from protocol.token_buckets import Rate, TokenBuckets

ROLE = "coordinator"

# More clients at once than this, and the idlest is forgotten with what it has asked.
CLIENTS_MAX = 10_000


class LeaseServer:
    """Serves one stream per client; `handle` is the transport's handler."""

    def __init__(self, service: LeaseService, records: OwnRecords, *, asks_per_minute: int) -> None:
        self._service = service
        self._asks_per_minute = asks_per_minute
        self._buckets = TokenBuckets(keys_max=CLIENTS_MAX)
        self._rpc = RpcServer(admit=self._take_turn)
        self._rpc.register(Method.LEASE, LeaseAsk, self._lease)
        self._rpc.register(Method.QUOTE, QuoteAsk, self._quote)
        self._rpc.register(Method.SETTLE, SettleAsk, self._settle)
        self._rpc.register(Method.DELIVERY, DeliveryAsk, self._deliver)
        self._rpc.register(Method.NODES, NodesAsk, self._nodes)
        self._rpc.register(Method.BALANCE, BalanceAsk, records.balance)
        self._rpc.register(Method.JOBS, JobsAsk, records.jobs)
        self._rpc.register(Method.JOB, JobAsk, records.job)
        self._rpc.register(Method.EVIDENCE, EvidenceAsk, records.evidence)
        self._rpc.register(Method.USAGE, UsageAsk, records.usage)

    async def handle(self, stream: Stream) -> None:
        await serve_channels(stream, self._rpc.serve_channel, role=ROLE, limits=ASKING_LIMITS)

    def _take_turn(self, client: PeerId) -> None:
        """Raises RemoteProtocolError (RATE_LIMITED)."""
        rate = Rate.per_minute(self._asks_per_minute)
        wait_s = self._buckets.take(client, rate, now_s=trio.current_time()).wait_s
        if wait_s:
            raise RemoteProtocolError(
                f"a client may ask {self._asks_per_minute} times per minute",
                code=Code.RATE_LIMITED,
                retry_after_ms=max(1, round(1_000 * wait_s)),
            )

    async def _lease(self, client: PeerId, ask: LeaseAsk) -> LeaseGrant:
        request = open_envelope(ask.request, JobRequest, signer=client)
        earlier = EarlierAttempts(
            ask.exclude,
            tuple(open_envelope(raw, Receipt) for raw in ask.receipts),
            tuple(open_envelope(raw, Delivery, signer=client) for raw in ask.deliveries),
        )
        granted = await self._service.lease(
            request,
            earlier=earlier,
            wait_s=REMOTE_TURN_WITHIN_S,
            vantage=Vantage(
                {trip.node: trip.rtt_us / 1_000 for trip in ask.round_trips}, dials=True
            ),
        )
        return LeaseGrant(
            granted.lease.raw,
            granted.offer.raw,
            granted.match_us,
            first_output_within_ms=granted.first_output_within_ms,
            gap_within_ms=granted.gap_within_ms,
            hedge_after_ms=granted.hedge_after_ms,
        )

    async def _quote(self, client: PeerId, ask: QuoteAsk) -> QuoteReply:
        return await self._service.quote(ask)

    async def _settle(self, client: PeerId, ask: SettleAsk) -> SettleReply:
        receipt = open_envelope(ask.receipt, Receipt)
        acceptance = open_envelope(ask.acceptance, Acceptance, signer=client)
        return await self._service.settle(receipt, acceptance)

    async def _deliver(self, client: PeerId, ask: DeliveryAsk) -> DeliveryAck:
        await self._service.declare(open_envelope(ask.delivery, Delivery, signer=client))
        return DeliveryAck()

    async def _nodes(self, client: PeerId, ask: NodesAsk) -> NodesReply:
        return await self._service.nodes(ask)
