"""The topics that a transport has joined: validate what arrives, and queue it for the subscriber.

Both transports deliver through here, so that a message is judged, counted and dropped by the same
rules on a real network and in a simulated one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import trio

from protocol.ids import PeerId
from protocol.net.serve import guarded
from protocol.net.transport import Gossip, Validator


@dataclass(frozen=True, slots=True)
class _Subscription:
    validate: Validator
    queue: trio.MemorySendChannel[Gossip]


class Topics:
    """Subscriptions by topic, with counts of what became of messages.

    `on_left` is told of a topic whose subscriber has closed its channel.
    """

    def __init__(self, on_left: Callable[[str], None] = lambda _: None) -> None:
        self._on_left = on_left
        self._subscriptions: dict[str, _Subscription] = {}
        self.received = 0
        self.rejected = 0
        self.dropped = 0

    def __contains__(self, topic: str) -> bool:
        return topic in self._subscriptions

    def names(self) -> tuple[str, ...]:
        return tuple(self._subscriptions)

    def subscribe(
        self, topic: str, validate: Validator, *, queue_max: int
    ) -> trio.MemoryReceiveChannel[Gossip]:
        assert topic not in self._subscriptions, f"{topic} is subscribed to already"
        send, receive = trio.open_memory_channel[Gossip](queue_max)
        self._subscriptions[topic] = _Subscription(guarded(validate, topic), send)
        return receive

    def is_valid(self, topic: str, data: bytes, via: PeerId) -> bool:
        """Whether a message may be delivered and passed on; counts those that may not."""
        subscription = self._subscriptions.get(topic)
        if subscription is None:
            return False
        if subscription.validate(data, via):
            return True
        self.rejected += 1
        return False

    def deliver(self, topic: str, data: bytes, via: PeerId) -> None:
        """Queue a valid message, or find that its subscriber has left."""
        subscription = self._subscriptions.get(topic)
        if subscription is None:
            return
        try:
            subscription.queue.send_nowait(Gossip(topic, data, via))
            self.received += 1
        except trio.WouldBlock:
            # Newer messages than those that wait: but offers are repeated, and order means nothing.
            self.dropped += 1
        except trio.BrokenResourceError:
            del self._subscriptions[topic]
            self._on_left(topic)
