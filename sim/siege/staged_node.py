"""A node whose every frame is chosen here, over the real network: honest ones and thieves.

It has a real key, a real connection and real signatures; only its work is made up. Each stands in
an address block of its own, as machines on the internet do: the first address that it offers leads
nowhere, and the coordinator reaches it on the connection that the node has opened.
"""

import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import TypeVar

import trio

from coordinator.endpoint import Endpoint
from protocol.envelope import Signed, seal
from protocol.errors import RemoteProtocolError
from protocol.ids import LeaseId, PeerId, sha256_digest
from protocol.keys import SigningKey
from protocol.messages import IsolationTier, Receipt, Task
from protocol.net.channels import Channel
from protocol.net.clock import SystemClock
from protocol.net.dial_policy import ALLOW_LOOPBACK
from protocol.net.errors import NetError
from protocol.net.libp2p import Libp2pTransport
from protocol.net.link import serve_channels
from protocol.net.pool import StreamPool
from protocol.net.rpc import RpcClient
from protocol.net.transport import Stream
from protocol.offers import Hardware, LoadReport, ModelLoad, ModelOffer, NodeOffer
from protocol.pricing import PriceSheet
from protocol.services import (
    CONTROL_PROTOCOL,
    JOB_PROTOCOL,
    AttachAsk,
    AttachReply,
    LoadAck,
    Method,
    ReceiptAsk,
    SettleReply,
)
from sim.siege.staged_job import StagedJob

R = TypeVar("R")

ROLE = "node"
PRICE = PriceSheet(input_nano_per_mtok=1_000_000_000, output_nano_per_mtok=4_000_000_000)
SLOTS = 4
_OFFER_LIFETIME_MS = 200_000
_CALL_WITHIN_S = 10.0
# Openings must be reported before the coordinator gives their leases up.
_REPORT_EVERY_S = 1.0

Play = Callable[["StagedJob"], Awaitable[None]]


class StagedNode:
    """`play` decides what it does with a job; it may be exchanged at any time."""

    def __init__(
        self,
        model: str,
        play: Play,
        *,
        price: PriceSheet = PRICE,
        free_model: str = "",
        address: str = "",
    ) -> None:
        """`free_model` is a second one, which costs nothing. `address` is the only one that it
        offers, without its peer id; by default where it is."""
        self._address = address
        self.key = SigningKey.generate(os.urandom)
        self.play = play
        self.jobs_opened = 0
        self._models = [_model_offer(model, price)]
        if free_model:
            self._models.append(_model_offer(free_model, PriceSheet()))
        self._sequence = 0
        self._incarnation_ms = SystemClock().now_ms()
        self._transport = Libp2pTransport(
            self.key, ("/ip4/127.0.0.1/tcp/0",), policy=ALLOW_LOOPBACK
        )
        self._control = StreamPool(
            self._transport, CONTROL_PROTOCOL, role=ROLE, rng=random.Random(1)
        )
        self._opened: list[LeaseId] = []
        self._coordinator = PeerId("")
        self._coordinator_address = ""

    @property
    def peer_id(self) -> PeerId:
        return self.key.peer_id

    async def run(
        self, endpoint: Endpoint, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Attach and serve until cancelled."""
        self._coordinator = PeerId(endpoint.peer_id)
        self._coordinator_address = endpoint.addresses[0]
        self._transport.handle(JOB_PROTOCOL, self._serve)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._transport.run)
            await nursery.start(self._control.run)
            await self.attach()
            task_status.started()
            await self._report_forever()

    async def attach(self) -> None:
        """Join the market; again after its coordinator was restarted."""
        await self._transport.connect(self._coordinator_address, timeout_s=_CALL_WITHIN_S)
        await self.call(Method.ATTACH, AttachAsk(self.offer().raw, self._load()), AttachReply)

    async def call(self, method: Method, ask: object, reply: type[R]) -> R:
        """Ask the coordinator on the control protocol."""
        return await RpcClient(self._control).call(
            self._coordinator,
            method,
            ask,
            reply,
            timeout_s=_CALL_WITHIN_S,
            addresses=(self._coordinator_address,),
        )

    async def hand_in(self, receipt: Signed[Receipt], acceptance: bytes = b"") -> SettleReply:
        """As a node's outbox does."""
        return await self.call(Method.RECEIPT, ReceiptAsk(receipt.raw, acceptance), SettleReply)

    def offer(self) -> Signed[NodeOffer]:
        now_ms = SystemClock().now_ms()
        self._sequence += 1
        return seal(
            self.key,
            NodeOffer(
                node=self.peer_id,
                incarnation_ms=self._incarnation_ms,
                sequence=self._sequence,
                issued_at_ms=now_ms,
                expires_at_ms=now_ms + _OFFER_LIFETIME_MS,
                addresses=self._offered_addresses(),
                region="siege",
                isolation=IsolationTier.BWRAP,
                hardware=Hardware("cpu", "staged", 2**30, 1),
                models=tuple(self._models),
                software="siege",
            ),
        )

    def _offered_addresses(self) -> tuple[str, ...]:
        if self._address:
            return (f"{self._address}/p2p/{self.peer_id}",)
        block = sum(self.peer_id[-8:].encode()) % 250, sum(self.peer_id[-20:-8].encode()) % 250
        elsewhere = f"/ip4/10.{block[0]}.{block[1]}.1/tcp/4001/p2p/{self.peer_id}"
        return (elsewhere, *self._transport.addresses)

    async def _serve(self, stream: Stream) -> None:
        await serve_channels(stream, self._serve_job, role=ROLE)

    async def _serve_job(self, channel: Channel) -> None:
        job = StagedJob(self.key, channel)
        lease = await job.wait_opened()
        self.jobs_opened += 1
        self._opened.append(lease.message.lease_id)
        await self.play(job)

    def _load(self) -> LoadReport:
        models = tuple(ModelLoad(model.manifest_digest, 0, 0, True) for model in self._models)
        return LoadReport(self._incarnation_ms, False, models, tuple(self._opened))

    async def _report_forever(self) -> None:
        while True:
            await trio.sleep(_REPORT_EVERY_S)
            try:
                await self.call(Method.LOAD, self._load(), LoadAck)
                self._opened.clear()
            except (NetError, RemoteProtocolError):
                # The coordinator was restarted: it answers when it is back.
                with suppress(NetError, RemoteProtocolError):
                    await self.attach()


def _model_offer(name: str, price: PriceSheet) -> ModelOffer:
    return ModelOffer(
        name=name,
        manifest_digest=sha256_digest(name.encode()),
        task=Task.CAUSAL_LM,
        quantization="bf16",
        context_tokens=4_096,
        slots=SLOTS,
        queue_max=SLOTS,
        prefill_tps=10_000,
        decode_tps=1_000,
        price=price,
    )


@asynccontextmanager
async def staged(endpoint: Endpoint, *nodes: StagedNode) -> AsyncIterator[None]:
    """These nodes are attached; they leave with the block."""
    async with trio.open_nursery() as nursery:
        for node in nodes:
            await nursery.start(node.run, endpoint)
        yield
        nursery.cancel_scope.cancel()
