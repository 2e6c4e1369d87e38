"""How one party of a `MemoryNetwork` spreads gossip: each message once to every neighbour that has
joined its topic, late, twice or not at all, as the conditions say."""

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING

import trio

from protocol.ids import PeerId
from protocol.net.gossip import Topics
from protocol.net.memory_connection import MemoryConnection

if TYPE_CHECKING:
    from protocol.net.memory import MemoryNetwork

# A second copy of a gossiped message takes up to so many times as long as the first: what was
# published since overtakes it.
DETOUR_MAX = 10
# A message that comes round again after this many others would be delivered again.
SEEN_MAX = 8192


class MemoryGossip:
    """`connections` are the transport's, by peer."""

    def __init__(
        self,
        network: "MemoryNetwork",
        peer_id: PeerId,
        connections: Mapping[PeerId, MemoryConnection],
    ) -> None:
        self.topics = Topics()
        self._network = network
        self._peer_id = peer_id
        self._connections = connections
        self._seen: dict[int, None] = {}
        self._newest: dict[str, int] = {}

    def publish(self, topic: str, data: bytes) -> None:
        """Send a message of our own on its way."""
        self._spread(next(self._network.numbers), topic, data, exclude=self._peer_id)

    def on_arrival(self, number: int, topic: str, data: bytes, via: PeerId) -> None:
        """A neighbour handed on a message: deliver it and hand it on, unless it is known or bad."""
        self._network.counts["gossip_arrived"] += 1
        if number in self._seen:
            return
        if number < self._newest.get(topic, 0):
            self._network.counts["gossip_overtaken"] += 1
        self._newest[topic] = max(number, self._newest.get(topic, 0))
        self._remember(number)
        if self.topics.is_valid(topic, data, via):
            self.topics.deliver(topic, data, via)
            self._spread(number, topic, data, exclude=via)

    def _spread(self, number: int, topic: str, data: bytes, *, exclude: PeerId) -> None:
        """To every neighbour in the topic; what gossipsub's mesh does in a small network."""
        self._remember(number)
        rng = self._network.rng
        for peer, connection in self._connections.items():
            target, conditions = connection.other, connection.wire.conditions
            if peer == exclude or connection.wire.is_silent or not target.has_joined(topic):
                continue
            if conditions.loss and rng.random() < conditions.loss:
                continue
            delay_s = connection.wire.delay_s()
            if conditions.gossip_delay_s:
                delay_s += rng.uniform(0, conditions.gossip_delay_s)
            arrive = partial(target.on_gossip, number, topic, data, self._peer_id)
            target.agenda.add(trio.current_time() + delay_s, arrive)
            if conditions.gossip_duplicates and rng.random() < conditions.gossip_duplicates:
                self._network.counts["gossip_duplicated"] += 1
                # Under a new number, as after the seen-cache has forgotten it.
                again = partial(
                    target.on_gossip, next(self._network.numbers), topic, data, self._peer_id
                )
                detour_s = delay_s * rng.uniform(1, DETOUR_MAX)
                target.agenda.add(trio.current_time() + detour_s, again)

    def _remember(self, number: int) -> None:
        self._seen[number] = None
        if len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]
