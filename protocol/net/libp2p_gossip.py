"""Gossipsub v1.1 with the settings that a small network of rare messages needs.

py-libp2p's defaults are for something else: a heartbeat every two minutes, a silent limit of ten
messages a second per neighbour that also drops our own, extensions of v2 that double the cost.
"""

from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar

import trio
from libp2p.abc import IHost
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.gossipsub import PROTOCOL_ID_V11, GossipSub
from libp2p.pubsub.pb import rpc_pb2
from libp2p.pubsub.pubsub import Pubsub
from libp2p.tools.anyio_service import background_trio_service

from protocol.ids import PeerId
from protocol.net.gossip import Topics
from protocol.net.serve import Boundary

# Neighbours that get every message at once. With fewer connections than DEGREE_HIGH nothing is ever
# pruned: a node that is pruned may not graft for a minute, and degrees of 3/2/5 were seen to leave
# one without any neighbour.
DEGREE, DEGREE_LOW, DEGREE_HIGH = 6, 4, 12

HEARTBEAT_S = 1

# An RPC carries an offer, its signature and control messages. The library's bound is a megabyte.
RPC_BYTES_MAX = 256 * 1024

# Our topics, and some that a later version may add.
TOPICS_PER_PEER_MAX = 64

# Who passed on the message that this task is working on.
_forwarder: ContextVar[PeerId] = ContextVar("forwarder")


class GossipService(Pubsub):
    """Delivers to `topics` at once; an error in one message ends with that message."""

    def __init__(self, host: IHost, router: GossipSub, topics: Topics, first_number: int) -> None:
        super().__init__(
            host,
            router,
            strict_signing=True,
            max_inbound_rpc_size=RPC_BYTES_MAX,
            max_subscriptions_per_peer=TOPICS_PER_PEER_MAX,
        )
        # Messages are told apart by author and number. The library starts at the current second,
        # so that a node that published faster and restarts would repeat numbers and not be heard.
        self.counter = first_number
        self._topics = topics

    async def push_msg(self, msg_forwarder: ID, msg: rpc_pb2.Message) -> None:
        async def push(message: rpc_pb2.Message) -> None:
            _forwarder.set(PeerId(str(msg_forwarder)))
            await super(GossipService, self).push_msg(msg_forwarder, message)

        # The library runs this as a task of its service: what it raises would end all gossip.
        await Boundary(push, "gossip").run(msg)

    def notify_subscriptions(self, publish_message: rpc_pb2.Message) -> None:
        """Straight to our own queue. The library's holds 32 messages and drops what follows."""
        via = _forwarder.get()
        if via == str(self.my_id):
            return
        for topic in publish_message.topicIDs:
            self._topics.deliver(topic, publish_message.data, via)

    def validator_of(self, topic: str) -> Callable[[ID, rpc_pb2.Message], bool]:
        """Sync on purpose: an asynchronous one lets the same message in twice meanwhile."""

        def validate(forwarder: ID, message: rpc_pb2.Message) -> bool:
            if forwarder == self.my_id:
                return True
            # With several topics in one message, each validator would judge the others' bytes.
            via = PeerId(str(forwarder))
            return len(message.topicIDs) == 1 and self._topics.is_valid(topic, message.data, via)

        return validate


class _Router(GossipSub):
    """Tells every new neighbour our topics twice.

    The library writes its greeting with the topics of that moment, waits, and only then registers
    the neighbour for what follows: a topic joined in between would never be told to it.
    """

    def add_peer(self, peer_id: ID, protocol_id: TProtocol | None) -> None:
        super().add_peer(peer_id, protocol_id)
        if self.pubsub is not None:
            self.pubsub.manager.run_task(self._greet_again, peer_id)

    async def _greet_again(self, peer_id: ID) -> None:
        await trio.lowlevel.checkpoint()
        if self.pubsub is not None and peer_id in self.pubsub.peers:
            self.send_rpc(peer_id, self.pubsub.get_hello_packet())


@asynccontextmanager
async def running_gossip(
    host: IHost, topics: Topics, *, first_number: int
) -> AsyncIterator[GossipService]:
    """Gossip on `host` while the block runs. Before any connection is made."""
    router = _Router(
        [PROTOCOL_ID_V11],
        DEGREE,
        DEGREE_LOW,
        DEGREE_HIGH,
        heartbeat_interval=HEARTBEAT_S,
        spam_protection_enabled=False,
        eclipse_protection_enabled=False,
        adaptive_gossip_enabled=False,
        # Kept for each neighbour that is not in the topic: in a sharded network, most of them.
        max_pending_messages_per_peer=1,
    )
    # Kept for the adaptive mode only, which is what would ever empty them.
    router.recent_message_deliveries = defaultdict(_Forgetful)
    gossip = GossipService(host, router, topics, first_number)
    async with background_trio_service(gossip), background_trio_service(router):
        await gossip.wait_until_ready()
        yield gossip


class _Forgetful(list[float]):
    """Times of what happened, which are never read."""

    def append(self, _: float) -> None:
        pass
