"""Nodes that refused a client lately, and that this client should leave alone for a while.

A single client can make an honest node refuse: it fills the node itself, or asks for what the node
cannot do. So a refusal keeps the node from this client only, until several clients have met with
one (`market.breaker.Cooldown`).
"""

from collections import OrderedDict
from dataclasses import dataclass

from coordinator.market.breaker import COOL_BASE_MS, COOL_MAX_MS, backoff_ms
from protocol.ids import PeerId

CLIENTS_MAX = 4_096
# More nodes than this refuse one client only in a market that is full.
NODES_MAX = 64


@dataclass(slots=True)
class _Wait:
    refusals_in_row: int = 0
    until_ms: int = 0


class ClientWaits:
    """By client, then by node; the client longest unheard of is forgotten first."""

    def __init__(self) -> None:
        self._of: OrderedDict[PeerId, OrderedDict[PeerId, _Wait]] = OrderedDict()

    def on_refusal(
        self,
        client: PeerId,
        node: PeerId,
        now_ms: int,
        *,
        retry_after_ms: int | None,
        jitter: float,
    ) -> None:
        """The node's own `retry_after_ms` is believed up to a cap, but never below our back-off."""
        nodes = self._of.setdefault(client, OrderedDict())
        self._of.move_to_end(client)
        if len(self._of) > CLIENTS_MAX:
            self._of.popitem(last=False)
        wait = nodes.setdefault(node, _Wait())
        nodes.move_to_end(node)
        if len(nodes) > NODES_MAX:
            nodes.popitem(last=False)
        if now_ms < wait.until_ms:
            return
        own_ms = backoff_ms(COOL_BASE_MS, wait.refusals_in_row, COOL_MAX_MS, jitter=jitter)
        wait.refusals_in_row += 1
        wait.until_ms = now_ms + max(own_ms, min(retry_after_ms or 0, COOL_MAX_MS))

    def on_success(self, client: PeerId, node: PeerId) -> None:
        self._of.get(client, OrderedDict()).pop(node, None)

    def nodes(self, client: PeerId, now_ms: int) -> dict[PeerId, int]:
        """The nodes that this client should not ask now, and until when (unix milliseconds)."""
        waits = self._of.get(client)
        if not waits:
            return {}
        return {node: wait.until_ms for node, wait in waits.items() if now_ms < wait.until_ms}
