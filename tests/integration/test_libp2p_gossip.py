"""What a stock peer sees of our gossip, on loopback sockets."""

import pytest
import trio
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2

from protocol.net.dial_policy import ALLOW_LOOPBACK
from protocol.net.libp2p import Libp2pTransport
from protocol.net.libp2p_gossip import GossipService
from protocol.services import offer_topic
from tests.protocol.net.contract import key_of

LIVES = 3
MESSAGES = 20


async def test_the_number_of_a_message_is_never_used_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Peers tell messages apart by author and number. The library begins with the second of its
    start, so that a node that restarted at once was not heard."""
    ids: list[bytes] = []
    push = GossipService.push_msg

    async def record(service: GossipService, forwarder: ID, message: rpc_pb2.Message) -> None:
        ids.append(message.from_id + message.seqno)
        await push(service, forwarder, message)

    monkeypatch.setattr(GossipService, "push_msg", record)
    for life in range(LIVES):
        transport = Libp2pTransport(key_of(1), ("/ip4/127.0.0.1/tcp/0",), policy=ALLOW_LOOPBACK)
        async with trio.open_nursery() as nursery:
            await nursery.start(transport.run)
            for number in range(MESSAGES):
                await transport.publish(offer_topic(0), bytes([life, number]))
            nursery.cancel_scope.cancel()
    assert len(set(ids)) == len(ids) == LIVES * MESSAGES
    assert {len(each) for each in ids} == {len(ids[0])}, "the number has eight bytes"
