"""Who wants to know when peers come and go."""

import structlog
import trio

from protocol.net.transport import PEER_EVENTS_MAX, PeerEvent

log = structlog.get_logger(__name__)


class Watchers:
    """Tells every open channel about every event; a closed channel is forgotten."""

    def __init__(self) -> None:
        self._channels: list[trio.MemorySendChannel[PeerEvent]] = []

    def add(self) -> trio.MemoryReceiveChannel[PeerEvent]:
        send, receive = trio.open_memory_channel[PeerEvent](PEER_EVENTS_MAX)
        self._channels.append(send)
        return receive

    def tell(self, event: PeerEvent) -> None:
        for channel in list(self._channels):
            try:
                channel.send_nowait(event)
            except trio.BrokenResourceError:
                self._channels.remove(channel)
            except trio.WouldBlock:
                log.error("peer_event_dropped", peer=event.peer, connected=event.connected)
